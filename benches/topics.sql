-- W3: bids over 500,000 from topic to topic. Connector, servers and topic of both ends come from topics.sh.
SET 'checkpoint.location' = '${out}/checkpoints';

CREATE TABLE bids (auction BIGINT, bidder BIGINT, price BIGINT, channel STRING, url STRING, dateTime TIMESTAMP(3))
  WITH (${source}, 'format' = 'json');

CREATE TABLE high_bids (auction BIGINT, bidder BIGINT, price BIGINT, dateTime TIMESTAMP(3))
  WITH (${target}, 'format' = 'json', 'sink.delivery-guarantee' = '${guarantee}');

INSERT INTO high_bids SELECT auction, bidder, price, dateTime FROM bids WHERE price > 500000;
