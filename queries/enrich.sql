-- A stream joined with a static table, written in Hive-style directories, one a day.
--
--   millstream submit queries/enrich.sql --var out=/tmp/enrich

SET 'checkpoint.location' = '${out}/checkpoints';

CREATE TABLE orders (
  order_id BIGINT, item_id INT, amount DECIMAL(10, 2), ts TIMESTAMP(3),
  day AS CAST(ts AS DATE)
) WITH (
  'connector' = 'datagen', 'number-of-rows' = '100000', 'rows-per-second' = '100000',
  'fields.order_id.kind' = 'sequence', 'fields.order_id.start' = '1',
  'fields.item_id.min' = '1', 'fields.item_id.max' = '5',
  'fields.amount.min' = '0.50', 'fields.amount.max' = '250.00',
  'fields.ts.kind' = 'sequence', 'fields.ts.start' = '2026-01-01 00:00:00', 'fields.ts.step' = '2 s'
);

-- Static tables are DataFusion's: files (CREATE EXTERNAL TABLE), or as here a view over values.
CREATE VIEW items AS SELECT * FROM (VALUES (1, 'apple'), (2, 'bread'), (3, 'cheese'), (4, 'coffee')) AS v (id, name);

CREATE TABLE named_orders (order_id BIGINT, item STRING, amount DECIMAL(10, 2), ts TIMESTAMP(3), day DATE)
  PARTITIONED BY (day)
  WITH ('connector' = 'filesystem', 'path' = '${out}/named_orders', 'format' = 'parquet');

SET 'epoch.trigger' = '1 s';

-- LEFT JOIN keeps every order, also of items that nobody named.
INSERT INTO named_orders
SELECT order_id, name, amount, ts, day FROM orders LEFT JOIN items ON orders.item_id = items.id;
