-- W1: bids over 500,000 from a topic into Parquet.
SET 'checkpoint.location' = '${out}/checkpoints';

CREATE TABLE bids (auction BIGINT, bidder BIGINT, price BIGINT, channel STRING, url STRING, dateTime TIMESTAMP(3))
  WITH (${source}, 'topic' = '${topic}', 'format' = 'json', 'scan.max-rows-per-epoch' = '${rows}');

CREATE TABLE high_bids (auction BIGINT, bidder BIGINT, price BIGINT, dateTime TIMESTAMP(3))
  WITH ('connector' = 'filesystem', 'path' = '${out}/high_bids', 'format' = 'parquet');

INSERT INTO high_bids SELECT auction, bidder, price, dateTime FROM bids WHERE price > 500000;
