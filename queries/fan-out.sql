-- One reading, two results: a statement set writes all orders, in Hive-style directories, one a day, and the totals of
-- each hour and item beside them. An epoch counts when it is in both.
--
--   millstream submit queries/fan-out.sql --var out=/tmp/fan-out

SET 'checkpoint.location' = '${out}/checkpoints';

CREATE TABLE orders (
  order_id BIGINT, item STRING, amount DECIMAL(10, 2), ts TIMESTAMP(3),
  day AS CAST(ts AS DATE),
  WATERMARK FOR ts AS ts - INTERVAL '5' SECOND
) WITH (
  'connector' = 'datagen', 'number-of-rows' = '100000', 'rows-per-second' = '100000',
  'fields.order_id.kind' = 'sequence', 'fields.order_id.start' = '1',
  'fields.item.values' = 'apple,banana,cherry,date',
  'fields.amount.min' = '0.50', 'fields.amount.max' = '250.00',
  'fields.ts.kind' = 'sequence', 'fields.ts.start' = '2026-01-01 00:00:00', 'fields.ts.step' = '2 s',
  'scan.max-rows-per-epoch' = '20000'
);

CREATE TABLE all_orders (order_id BIGINT, item STRING, amount DECIMAL(10, 2), ts TIMESTAMP(3), day DATE)
  PARTITIONED BY (day)
  WITH ('connector' = 'filesystem', 'path' = '${out}/all_orders', 'format' = 'parquet');

CREATE TABLE hourly_totals (hour TIMESTAMP(3), item STRING, orders BIGINT, total DECIMAL(20, 2))
  WITH ('connector' = 'filesystem', 'path' = '${out}/hourly_totals', 'format' = 'parquet');

SET 'epoch.trigger' = '1 s';

EXECUTE STATEMENT SET BEGIN
  INSERT INTO all_orders
  SELECT order_id, item, amount, ts, day FROM orders;

  INSERT INTO hourly_totals
  SELECT window_start, item, count(*), sum(amount)
  FROM TABLE(TUMBLE(TABLE orders, DESCRIPTOR(ts), INTERVAL '1' HOUR))
  GROUP BY window_start, window_end, item;
END;
