-- One file over both brokers: the orders of a Kafka topic and of a RocketMQ topic into one directory of Parquet, and the
-- large ones of Kafka into a RocketMQ topic.
--
--   make brokers, then make topics     or     millstream submit queries/topics.sql --var out=/tmp/topics

SET 'checkpoint.location' = '${out}/checkpoints';

CREATE TABLE kafka_orders (
  order_id BIGINT, item STRING, amount DECIMAL(10, 2), ts TIMESTAMP(3),
  part INT METADATA FROM 'partition' VIRTUAL, pos BIGINT METADATA FROM 'offset' VIRTUAL
) WITH ('connector' = 'kafka', 'properties.bootstrap.servers' = '127.0.0.1:9092', 'topic' = 'orders', 'format' = 'json');

CREATE TABLE rocketmq_orders (
  order_id BIGINT, item STRING, amount DECIMAL(10, 2), ts TIMESTAMP(3),
  tag STRING METADATA FROM 'tags', queue INT METADATA VIRTUAL, pos BIGINT METADATA FROM 'offset' VIRTUAL
) WITH ('connector' = 'rocketmq', 'name-server' = '127.0.0.1:9876', 'topic' = 'OrderTopic', 'format' = 'json');

CREATE TABLE all_orders (broker STRING, order_id BIGINT, item STRING, cents BIGINT, ts TIMESTAMP(3))
  PARTITIONED BY (broker)
  WITH ('connector' = 'filesystem', 'path' = '${out}/all_orders', 'format' = 'parquet');

INSERT INTO all_orders
SELECT 'kafka', order_id, item, CAST(amount * 100 AS BIGINT), ts FROM kafka_orders
UNION ALL
SELECT 'rocketmq', order_id, item, CAST(amount * 100 AS BIGINT), ts FROM rocketmq_orders;

CREATE TABLE large_orders (
  order_id BIGINT, amount DECIMAL(10, 2), item STRING METADATA FROM 'tags', id STRING METADATA FROM 'keys'
) WITH ('connector' = 'rocketmq', 'name-server' = '127.0.0.1:9876', 'topic' = 'LargeOrders', 'format' = 'json');

INSERT INTO large_orders
SELECT order_id, amount, item, CAST(order_id AS STRING) AS id FROM kafka_orders WHERE amount > 90;
