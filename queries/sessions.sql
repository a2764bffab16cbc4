-- Sessions of users: the clicks of a user belong together until the user pauses for half an hour. A session comes out
-- when the watermark has come to its end. Clicks that are late for any session go to a table of their own.
--
--   millstream submit queries/sessions.sql --var out=/tmp/sessions

SET 'checkpoint.location' = '${out}/checkpoints';

-- 100,000 clicks of 1,000 users, two a second. After the first 20,000 every thousandth arrives a day late.
CREATE TABLE clicks (
  click BIGINT, user_id BIGINT, page STRING, arrived TIMESTAMP(3),
  ts AS CASE WHEN click > 20000 AND click % 1000 = 0 THEN arrived - INTERVAL '1' DAY ELSE arrived END,
  WATERMARK FOR ts AS ts - INTERVAL '5' SECOND
) WITH (
  'connector' = 'datagen', 'number-of-rows' = '100000', 'rows-per-second' = '100000',
  'fields.click.kind' = 'sequence', 'fields.click.start' = '1',
  'fields.user_id.min' = '1', 'fields.user_id.max' = '1000',
  'fields.page.values' = 'home,search,item,cart',
  'fields.arrived.kind' = 'sequence', 'fields.arrived.start' = '2026-01-01 00:00:00', 'fields.arrived.step' = '500 ms',
  'scan.max-rows-per-epoch' = '10000'
);

CREATE TABLE user_sessions (user_id BIGINT, begins TIMESTAMP(3), ends TIMESTAMP(3), clicks BIGINT)
  WITH ('connector' = 'filesystem', 'path' = '${out}/user_sessions', 'format' = 'parquet');

-- Filled by name: with columns of the row, also such as the query does not use, and with what made it late.
CREATE TABLE late_clicks (user_id BIGINT, page STRING, arrived TIMESTAMP(3), late_watermark TIMESTAMP(3))
  WITH ('connector' = 'filesystem', 'path' = '${out}/late_clicks', 'format' = 'parquet');

SET 'late-rows.table' = 'late_clicks';
SET 'epoch.trigger' = '1 s';

INSERT INTO user_sessions
SELECT user_id, window_start, window_end, count(*)
FROM TABLE(SESSION(TABLE clicks PARTITION BY user_id, DESCRIPTOR(ts), INTERVAL '30' MINUTES))
GROUP BY window_start, window_end, user_id;
