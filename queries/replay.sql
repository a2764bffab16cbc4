-- Dead letters, repaired and sent again: of the messages that dead-letters.sql put aside, those whose amount came as
-- 'n/a' go back to the topic and partition they came from, without an amount and else as they were. All others stay
-- where they are, so nothing goes round in circles.
--
--   make brokers, then make dead-letters   or   millstream submit queries/replay.sql --var out=/tmp/dead-letters

SET 'checkpoint.location' = '${out}/checkpoints';

CREATE TABLE bad_orders (
  payload STRING, topic STRING, `partition` INT,
  `key` BYTES METADATA VIRTUAL, headers MAP<STRING, BYTES> METADATA VIRTUAL
) WITH (
  'connector' = 'kafka', 'properties.bootstrap.servers' = '127.0.0.1:9092', 'topic' = 'bad-orders', 'format' = 'json'
);

-- Raw: the payload is the message, with nothing around it.
CREATE TABLE orders_again (
  payload STRING, `partition` INT METADATA, `key` BYTES METADATA, headers MAP<STRING, BYTES> METADATA
) WITH (
  'connector' = 'kafka', 'properties.bootstrap.servers' = '127.0.0.1:9092', 'topic' = 'shop-orders', 'format' = 'raw'
);

-- A payload with � in it was no UTF-8, and is not what it was.
INSERT INTO orders_again
SELECT regexp_replace(payload, '"amount" *: *"n/a"', '"amount":null') AS payload, `partition`, `key`, headers
FROM bad_orders
WHERE topic = 'shop-orders' AND regexp_like(payload, '"amount" *: *"n/a"') AND payload NOT LIKE '%�%';
