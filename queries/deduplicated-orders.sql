-- Orders that were sent more than once: the first of each order in its hour of event time is kept, in an append-only
-- result, once the hour is complete.
--
--   millstream submit queries/deduplicated-orders.sql --var out=/tmp/deduplicated-orders

SET 'checkpoint.location' = '${out}/checkpoints';

-- 50,000 messages of 1,000 orders, two a second of event time.
CREATE TABLE sent (
  order_id BIGINT, amount DECIMAL(10, 2), ts TIMESTAMP(3),
  WATERMARK FOR ts AS ts - INTERVAL '5' SECOND
) WITH (
  'connector' = 'datagen', 'number-of-rows' = '50000', 'rows-per-second' = '100000',
  'fields.order_id.min' = '1', 'fields.order_id.max' = '1000',
  'fields.amount.min' = '0.50', 'fields.amount.max' = '250.00',
  'fields.ts.kind' = 'sequence', 'fields.ts.start' = '2026-01-01 00:00:00', 'fields.ts.step' = '500 ms',
  'scan.max-rows-per-epoch' = '10000'
);

CREATE TABLE orders (hour TIMESTAMP(3), order_id BIGINT, amount DECIMAL(10, 2), ts TIMESTAMP(3))
  WITH ('connector' = 'filesystem', 'path' = '${out}/orders', 'format' = 'parquet');

SET 'epoch.trigger' = '1 s';

INSERT INTO orders
SELECT window_start, order_id, amount, ts FROM (
  SELECT *, ROW_NUMBER() OVER (PARTITION BY window_start, window_end, order_id ORDER BY ts) AS place
  FROM TABLE(TUMBLE(TABLE sent, DESCRIPTOR(ts), INTERVAL '1' HOUR)))
WHERE place = 1;
