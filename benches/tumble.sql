-- W2: of each auction in windows of ten seconds: count, highest price, sum of prices. The last window stays open.
SET 'checkpoint.location' = '${out}/checkpoints';

CREATE TABLE bids (auction BIGINT, bidder BIGINT, price BIGINT, channel STRING, url STRING, dateTime TIMESTAMP(3),
                   WATERMARK FOR dateTime AS dateTime - INTERVAL '5' SECOND)
  WITH (${source}, 'topic' = '${topic}', 'format' = 'json', 'scan.max-rows-per-epoch' = '${rows}');

CREATE TABLE per_auction (start TIMESTAMP(3), auction BIGINT, n BIGINT, top BIGINT, total BIGINT)
  WITH ('connector' = 'filesystem', 'path' = '${out}/per_auction', 'format' = 'parquet');

INSERT INTO per_auction
SELECT window_start, auction, count(*), max(price), sum(price)
FROM TABLE(TUMBLE(TABLE bids, DESCRIPTOR(dateTime), INTERVAL '10' SECOND))
GROUP BY window_start, window_end, auction;
