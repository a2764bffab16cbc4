-- Orders that were sent more than once: the first of each order by event time is kept, in an append-only result. It
-- comes out once the watermark has passed its time, so that no earlier one can follow.
--
--   millstream submit queries/deduplicated-orders.sql --var out=/tmp/deduplicated-orders

SET 'checkpoint.location' = '${out}/checkpoints';

-- 50,000 messages of 20,000 orders, two a second of event time.
CREATE TABLE sent (
  order_id BIGINT, amount DECIMAL(10, 2), ts TIMESTAMP(3),
  WATERMARK FOR ts AS ts - INTERVAL '5' SECOND
) WITH (
  'connector' = 'datagen', 'number-of-rows' = '50000', 'rows-per-second' = '100000',
  'fields.order_id.min' = '1', 'fields.order_id.max' = '20000',
  'fields.amount.min' = '0.50', 'fields.amount.max' = '250.00',
  'fields.ts.kind' = 'sequence', 'fields.ts.start' = '2026-01-01 00:00:00', 'fields.ts.step' = '500 ms',
  'scan.max-rows-per-epoch' = '10000'
);

CREATE TABLE orders (order_id BIGINT, amount DECIMAL(10, 2), ts TIMESTAMP(3))
  WITH ('connector' = 'filesystem', 'path' = '${out}/orders', 'format' = 'parquet');

SET 'epoch.trigger' = '1 s';

-- Which orders have come out is remembered for a week. One that is sent again after that comes out again.
SET 'state.ttl' = '7 d';

INSERT INTO orders
SELECT order_id, amount, ts FROM sent
QUALIFY ROW_NUMBER() OVER (PARTITION BY order_id ORDER BY ts) = 1;
