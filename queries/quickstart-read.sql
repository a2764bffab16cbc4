-- A few of the rows that quickstart.sql wrote: the directory is plain Parquet, for any reader.

CREATE EXTERNAL TABLE big_orders STORED AS PARQUET LOCATION '${out}/big_orders/';

SELECT count(*) AS orders, min(amount) AS least, max(amount) AS most FROM big_orders;

SELECT * FROM big_orders ORDER BY order_id LIMIT 5;
