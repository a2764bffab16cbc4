-- A result that changes, over as many groups as asked for: each epoch touches 100,000 of them, all over the place.
SET 'checkpoint.location' = '${out}/checkpoints';

CREATE TABLE input (n BIGINT, v BIGINT, k AS (n * 48271) % ${groups})
  WITH ('connector' = 'datagen', 'number-of-rows' = '${rows}', 'rows-per-second' = '100000000', 'fields.n.kind' = 'sequence',
        'fields.v.min' = '0', 'fields.v.max' = '1000', 'scan.max-rows-per-epoch' = '100000');

CREATE TABLE totals (k BIGINT, n BIGINT, total BIGINT) WITH ('connector' = 'blackhole');

INSERT INTO totals SELECT k, count(*), sum(v) FROM input GROUP BY k;
