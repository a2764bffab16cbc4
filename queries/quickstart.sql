-- A bounded stream of made-up orders, filtered into Parquet. Needs no broker.
--
--   make quickstart        or        millstream submit queries/quickstart.sql --var out=/tmp/quickstart

SET 'checkpoint.location' = '${out}/checkpoints';

CREATE TABLE orders (
  order_id BIGINT,
  item     STRING,
  amount   DECIMAL(10, 2),
  ts       TIMESTAMP(3)
) WITH (
  'connector' = 'datagen',
  'number-of-rows' = '500000',
  'rows-per-second' = '100000',
  'fields.order_id.kind' = 'sequence', 'fields.order_id.start' = '1',
  'fields.item.values' = 'apple,banana,cherry,date',
  'fields.amount.min' = '0.50', 'fields.amount.max' = '250.00',
  'fields.ts.kind' = 'sequence', 'fields.ts.start' = '2026-01-01 00:00:00', 'fields.ts.step' = '10 ms',
  'scan.max-rows-per-epoch' = '100000'
);

CREATE TABLE big_orders (order_id BIGINT, item STRING, amount DECIMAL(10, 2), ts TIMESTAMP(3))
  WITH ('connector' = 'filesystem', 'path' = '${out}/big_orders', 'format' = 'parquet');

SET 'epoch.trigger' = '1 s';

INSERT INTO big_orders
SELECT order_id, item, amount, ts FROM orders WHERE amount > 100;
