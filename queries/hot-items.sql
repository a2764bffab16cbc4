-- The three items that were clicked most within an hour, anew every ten minutes: a count in overlapping windows (HOP) of
-- event time, and a ranking within each window.
--
--   millstream submit queries/hot-items.sql --var out=/tmp/hot-items

SET 'checkpoint.location' = '${out}/checkpoints';

-- 100,000 clicks, ten a second of event time. An epoch takes 10,000, so windows come out while the stream goes on.
CREATE TABLE clicks (
  item STRING, ts TIMESTAMP(3),
  WATERMARK FOR ts AS ts - INTERVAL '5' SECOND
) WITH (
  'connector' = 'datagen', 'number-of-rows' = '100000', 'rows-per-second' = '100000',
  'fields.item.values' = 'apple,banana,cherry,date,elder,fig,grape',
  'fields.ts.kind' = 'sequence', 'fields.ts.start' = '2026-01-01 00:00:00', 'fields.ts.step' = '100 ms',
  'scan.max-rows-per-epoch' = '10000'
);

CREATE TABLE hot_items (window_start TIMESTAMP(3), window_end TIMESTAMP(3), place BIGINT, item STRING, clicks BIGINT)
  WITH ('connector' = 'filesystem', 'path' = '${out}/hot_items', 'format' = 'parquet');

SET 'epoch.trigger' = '1 s';

INSERT INTO hot_items
SELECT window_start, window_end, place, item, clicks FROM (
  SELECT *, ROW_NUMBER() OVER (PARTITION BY window_start, window_end ORDER BY clicks DESC, item) AS place FROM (
    SELECT window_start, window_end, item, count(*) AS clicks
    FROM TABLE(HOP(TABLE clicks, DESCRIPTOR(ts), INTERVAL '10' MINUTES, INTERVAL '1' HOUR))
    GROUP BY window_start, window_end, item))
WHERE place <= 3;
