-- From topic to topic exactly once, as soon as rows are there, under a checkpoint that is synced.
SET 'checkpoint.location' = '${out}/checkpoints';

CREATE TABLE sent (n BIGINT, sent BIGINT, auction BIGINT, price BIGINT)
  WITH ('connector' = 'kafka', 'properties.bootstrap.servers' = '${kafka}', 'topic' = 'sent', 'format' = 'json');

CREATE TABLE received (n BIGINT, sent BIGINT, auction BIGINT, price BIGINT)
  WITH ('connector' = 'kafka', 'properties.bootstrap.servers' = '${kafka}', 'topic' = 'received', 'format' = 'json');

INSERT INTO received SELECT n, sent, auction, price FROM sent WHERE price > 0;
