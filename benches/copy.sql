-- A topic as it is into another one: fills RocketMQ's with the bids that Kafka's has.
SET 'checkpoint.location' = '${out}/checkpoints';

CREATE TABLE source (payload BYTES) WITH (${source}, 'format' = 'raw');

CREATE TABLE target (payload BYTES) WITH (${target}, 'format' = 'raw', 'sink.delivery-guarantee' = '${guarantee}');

INSERT INTO target SELECT payload FROM source;
