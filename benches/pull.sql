-- Messages of a topic as they are, into nowhere.
SET 'checkpoint.location' = '${out}/checkpoints';

CREATE TABLE messages (payload BYTES)
  WITH (${source}, 'topic' = '${topic}', 'format' = 'raw', 'scan.max-rows-per-epoch' = '${rows}');

CREATE TABLE nowhere (payload BYTES) WITH ('connector' = 'blackhole');

INSERT INTO nowhere SELECT payload FROM messages;
