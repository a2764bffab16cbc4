-- A million different values in one group: each epoch adds 100,000 of them to one window, which comes out at the end.
SET 'checkpoint.location' = '${out}/checkpoints';

CREATE TABLE input (n BIGINT, ts TIMESTAMP(3), WATERMARK FOR ts AS ts)
  WITH ('connector' = 'datagen', 'number-of-rows' = '2000000', 'rows-per-second' = '100000000', 'fields.n.kind' = 'sequence',
        'fields.ts.kind' = 'sequence', 'fields.ts.start' = '2026-01-01 00:00:00', 'fields.ts.step' = '1 ms',
        'scan.max-rows-per-epoch' = '100000');

CREATE TABLE totals (start TIMESTAMP(3), n BIGINT) WITH ('connector' = 'blackhole');

INSERT INTO totals SELECT window_start, count(DISTINCT n % 1000000)
FROM TABLE(TUMBLE(TABLE input, DESCRIPTOR(ts), INTERVAL '1' DAY)) GROUP BY window_start, window_end;
