-- Dead letters: orders of a Kafka topic into Parquet, and those that cannot be read, as they came, into a topic of
-- their own, with the error and the place they came from. Both exactly once. replay.sql sends repaired ones again.
--
--   make brokers, then make dead-letters   or   millstream submit queries/dead-letters.sql --var out=/tmp/dead-letters

SET 'checkpoint.location' = '${out}/checkpoints';

CREATE TABLE orders (order_id BIGINT, item STRING, amount DECIMAL(10, 2), ts TIMESTAMP(3)) WITH (
  'connector' = 'kafka', 'properties.bootstrap.servers' = '127.0.0.1:9092', 'topic' = 'shop-orders', 'format' = 'json',
  'format.dead-letter-table' = 'bad_orders'
);

-- Its columns are filled by name. Key and headers of the message become those of the dead letter; the others stand in
-- its payload: as METADATA, topic and partition would say where the dead letter is to go.
CREATE TABLE bad_orders (
  payload STRING, error STRING, topic STRING, `partition` INT, `offset` BIGINT, `timestamp` TIMESTAMP_LTZ(3),
  `key` BYTES METADATA, headers MAP<STRING, BYTES> METADATA
) WITH (
  'connector' = 'kafka', 'properties.bootstrap.servers' = '127.0.0.1:9092', 'topic' = 'bad-orders', 'format' = 'json'
);

CREATE TABLE good_orders (order_id BIGINT, item STRING, amount DECIMAL(10, 2), ts TIMESTAMP(3))
  WITH ('connector' = 'filesystem', 'path' = '${out}/good_orders', 'format' = 'parquet');

INSERT INTO good_orders SELECT order_id, item, amount, ts FROM orders;
