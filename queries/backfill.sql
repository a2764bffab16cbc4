-- A backlog, once, and not faster than the brokers like it: totals of each hour over all that both topics hold now. The
-- streams end where the topics do when the query begins, so every window comes out and the query ends. What it has read
-- shows as the position of a consumer group in the brokers' own tools.
--
--   make brokers, then     millstream submit queries/backfill.sql --var out=/tmp/backfill

SET 'checkpoint.location' = '${out}/checkpoints';
-- Epochs of about two seconds, whatever the rows are like.
SET 'epoch.target-duration' = '2 s';
SET 'epoch.trigger' = 'continuous';

CREATE TABLE kafka_orders (
  item STRING, amount DECIMAL(10, 2), ts TIMESTAMP(3), WATERMARK FOR ts AS ts - INTERVAL '1' HOUR
) WITH (
  'connector' = 'kafka', 'properties.bootstrap.servers' = '127.0.0.1:9092', 'topic-pattern' = 'orders(-.*)?',
  'format' = 'json', 'properties.group.id' = 'backfill',
  'scan.bounded.mode' = 'latest-offset', 'scan.on-data-loss' = 'continue',
  'scan.max-rows-per-second-per-partition' = '5000', 'scan.min-rows-per-epoch' = '1000'
);

CREATE TABLE rocketmq_orders (
  item STRING, amount DECIMAL(10, 2), ts TIMESTAMP(3), WATERMARK FOR ts AS ts - INTERVAL '1' HOUR
) WITH (
  'connector' = 'rocketmq', 'name-server' = '127.0.0.1:9876', 'topic' = 'OrderTopic',
  'format' = 'json', 'group' = 'backfill',
  'scan.bounded.mode' = 'latest-offset', 'scan.on-data-loss' = 'continue',
  'scan.max-rows-per-second-per-partition' = '5000', 'scan.min-rows-per-epoch' = '1000'
);

CREATE TABLE hourly_totals (hour TIMESTAMP(3), item STRING, orders BIGINT, total DECIMAL(20, 2))
  WITH ('connector' = 'filesystem', 'path' = '${out}/hourly_totals', 'format' = 'parquet');

INSERT INTO hourly_totals
SELECT window_start, item, count(*), sum(amount)
FROM TABLE(TUMBLE(
  (SELECT item, amount, ts FROM kafka_orders UNION ALL SELECT item, amount, ts FROM rocketmq_orders),
  DESCRIPTOR(ts), INTERVAL '1' HOUR))
GROUP BY window_start, window_end, item;
