//! All statements, for help without a network and for the page `docs/statements.md`.
//!
//! Each example is a complete statement, which the tests parse; the page is compared with [`page`]. What a statement
//! does in full is said in `docs/sql.md`. Examples name connectors as any text does: nothing here knows them.

/// A statement, for whoever wants to write it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// What it is about; entries of one theme stand together.
    pub theme: &'static str,
    /// Its name, such as `CREATE TABLE`.
    pub name: &'static str,
    /// Its form: `[…]` may be left out, `a | b` is one of both.
    pub syntax: &'static str,
    /// What it does, in a sentence or two.
    pub meaning: &'static str,
    /// A complete statement, without `;`.
    pub example: &'static str,
}

const TABLES: &str = "Tables and views";
const ROWS: &str = "Rows";
const QUERIES: &str = "Running queries";
const CLUSTERS: &str = "Topics and groups";
const SETTINGS: &str = "Settings";

/// All statements, theme by theme.
pub const STATEMENTS: &[Entry] = &[
    Entry {
        theme: TABLES,
        name: "CREATE TABLE",
        syntax: "CREATE [TEMPORARY] TABLE [IF NOT EXISTS] t [(\n  \
                 name TYPE [NOT NULL] [METADATA [FROM 'key'] [VIRTUAL]] [COMMENT '…'] | name AS expression, …\n  \
                 [, PRIMARY KEY (name, …) NOT ENFORCED] [, WATERMARK FOR name AS expression]\n\
                 )] [COMMENT '…'] [PARTITIONED BY (name, …)] WITH ('key' = 'value', …)",
        meaning: "Declares a stream or a destination: its columns, and where its rows are. Without columns they are \
                  found by looking into the topic, and the full statement is shown.",
        example: "CREATE TABLE orders (\n  \
                  id BIGINT, price DOUBLE, ts TIMESTAMP(3), WATERMARK FOR ts AS ts - INTERVAL '5' SECOND\n)\n\
                  WITH ('connector' = 'kafka', 'topic' = 'orders', 'format' = 'json',\n  \
                  'properties.bootstrap.servers' = 'localhost:9092')",
    },
    Entry {
        theme: TABLES,
        name: "CREATE TABLE AS",
        syntax: "CREATE TABLE [IF NOT EXISTS] t [(…)] WITH ('key' = 'value', …) AS SELECT …",
        meaning: "Declares a table, and starts a continuous query into it. Without columns of its own it gets those of \
                  the SELECT.",
        example: "CREATE TABLE big WITH ('connector' = 'filesystem', 'path' = '/data/big', 'format' = 'parquet')\n\
                  AS SELECT id, price FROM orders WHERE price > 100",
    },
    Entry {
        theme: TABLES,
        name: "CREATE EXTERNAL TABLE",
        syntax: "CREATE EXTERNAL TABLE [IF NOT EXISTS] t [(name TYPE, …)]\n\
                 STORED AS PARQUET | CSV | JSON LOCATION '…' [OPTIONS ('key' 'value', …)]",
        meaning: "Declares a static table over files, to join streams with or to ask. Statement and options are \
                  DataFusion's.",
        example: "CREATE EXTERNAL TABLE regions STORED AS PARQUET LOCATION '/data/regions'",
    },
    Entry {
        theme: TABLES,
        name: "ALTER TABLE",
        syntax: "ALTER TABLE t SET ('key' = 'value', …)\nALTER TABLE t RESET ('key', …)",
        meaning: "Sets options of a table, or takes them away. Statements that come later see the change.",
        example: "ALTER TABLE orders SET ('scan.startup.mode' = 'latest-offset')",
    },
    Entry {
        theme: TABLES,
        name: "DROP TABLE",
        syntax: "DROP [TEMPORARY] TABLE [IF EXISTS] t",
        meaning: "Forgets a table. Its topic or directory stays.",
        example: "DROP TABLE IF EXISTS orders",
    },
    Entry {
        theme: TABLES,
        name: "CREATE VIEW",
        syntax: "CREATE [OR REPLACE] [TEMPORARY] VIEW [IF NOT EXISTS] v [(name, …)] [COMMENT '…'] AS SELECT …",
        meaning: "Gives a query a name, to be used like a table.",
        example: "CREATE VIEW expensive AS SELECT id, price FROM orders WHERE price > 100",
    },
    Entry {
        theme: TABLES,
        name: "DROP VIEW",
        syntax: "DROP [TEMPORARY] VIEW [IF EXISTS] v",
        meaning: "Forgets a view.",
        example: "DROP VIEW IF EXISTS expensive",
    },
    Entry {
        theme: TABLES,
        name: "SHOW TABLES",
        syntax: "SHOW TABLES [LIKE 'pattern']",
        meaning: "Lists the tables. In a pattern `%` is any text, `_` any letter, and what follows a backslash is \
                  itself.",
        example: "SHOW TABLES LIKE 'order%'",
    },
    Entry {
        theme: TABLES,
        name: "SHOW VIEWS",
        syntax: "SHOW VIEWS [LIKE 'pattern']",
        meaning: "Lists the views.",
        example: "SHOW VIEWS",
    },
    Entry {
        theme: TABLES,
        name: "SHOW COLUMNS",
        syntax: "SHOW COLUMNS FROM t",
        meaning: "Lists the columns of a table or view, as DataFusion has them.",
        example: "SHOW COLUMNS FROM orders",
    },
    Entry {
        theme: TABLES,
        name: "SHOW FUNCTIONS",
        syntax: "SHOW FUNCTIONS [LIKE 'pattern']",
        meaning: "Lists the functions, with their arguments.",
        example: "SHOW FUNCTIONS LIKE 'json%'",
    },
    Entry {
        theme: TABLES,
        name: "SHOW CREATE TABLE",
        syntax: "SHOW CREATE TABLE t",
        meaning: "Prints the statement that declares a table, with its secrets hidden.",
        example: "SHOW CREATE TABLE orders",
    },
    Entry {
        theme: TABLES,
        name: "SHOW CREATE VIEW",
        syntax: "SHOW CREATE VIEW v",
        meaning: "Prints the statement that makes a view.",
        example: "SHOW CREATE VIEW expensive",
    },
    Entry {
        theme: TABLES,
        name: "DESCRIBE",
        syntax: "DESCRIBE | DESC [TABLE] t | k.topic",
        meaning: "Shows the columns of a table or view, and of a table its watermark and its options, with secrets \
                  hidden; of a topic of a catalog those that a SELECT finds there.",
        example: "DESCRIBE orders",
    },
    Entry {
        theme: ROWS,
        name: "SELECT",
        syntax: "[WITH name AS (SELECT …), …] SELECT … FROM t [/*+ OPTIONS('key' = 'value', …) */] …\n\
                 SELECT … FROM catalog.topic …\n\
                 SELECT … FROM state('query', 'operator' [, epoch]) …",
        meaning: "Shows rows. Over a stream it goes on until it is stopped or has reached its LIMIT; over what has an \
                  end, as files or a stream with `scan.bounded.mode`, all of DataFusion's SQL runs. `state` is what a \
                  query remembers.",
        example: "SELECT id, price FROM orders WHERE price > 100 LIMIT 10",
    },
    Entry {
        theme: ROWS,
        name: "INSERT INTO",
        syntax: "INSERT INTO t [(name, …)] SELECT … | VALUES (…), …",
        meaning: "Starts a continuous query: rows of streams go into a table as they arrive. VALUES writes rows by \
                  hand.",
        example: "INSERT INTO big SELECT id, price FROM orders WHERE price > 100",
    },
    Entry {
        theme: ROWS,
        name: "EXECUTE STATEMENT SET",
        syntax: "EXECUTE STATEMENT SET BEGIN INSERT INTO …; [INSERT INTO …;] … END",
        meaning: "Starts one continuous query of several targets, which reads each stream once.",
        example: "EXECUTE STATEMENT SET BEGIN\n  INSERT INTO big SELECT id, price FROM orders WHERE price > 100;\n  \
                  INSERT INTO small SELECT id, price FROM orders WHERE price <= 100;\nEND",
    },
    Entry {
        theme: ROWS,
        name: "EXPLAIN",
        syntax: "EXPLAIN [PLAN FOR] INSERT INTO … | STATEMENT SET BEGIN … END\n\
                 EXPLAIN [ANALYZE] [VERBOSE] [PLAN FOR] SELECT …",
        meaning: "Shows how a statement would run: of a continuous query also its sources, destination, guarantee and \
                  what it remembers. ANALYZE runs a SELECT and measures it.",
        example: "EXPLAIN INSERT INTO big SELECT id, price FROM orders WHERE price > 100",
    },
    Entry {
        theme: QUERIES,
        name: "SHOW QUERIES",
        syntax: "SHOW QUERIES",
        meaning: "Lists the queries that were started here: state, rows per second, lag, epoch, watermark, and the \
                  last error.",
        example: "SHOW QUERIES",
    },
    Entry {
        theme: QUERIES,
        name: "DESCRIBE QUERY",
        syntax: "DESCRIBE QUERY 'name'",
        meaning: "Shows one of these queries in full.",
        example: "DESCRIBE QUERY 'shell/big'",
    },
    Entry {
        theme: QUERIES,
        name: "STOP QUERY",
        syntax: "STOP QUERY 'name'",
        meaning: "Stops a query when its epoch is finished.",
        example: "STOP QUERY 'shell/big'",
    },
    Entry {
        theme: QUERIES,
        name: "RESTART QUERY",
        syntax: "RESTART QUERY 'name'",
        meaning: "Starts a query again that was stopped or has failed, where its checkpoint says.",
        example: "RESTART QUERY 'shell/big'",
    },
    Entry {
        theme: CLUSTERS,
        name: "CREATE CATALOG",
        syntax: "CREATE CATALOG [IF NOT EXISTS] k WITH ('type' = '…', 'key' = 'value', …)",
        meaning: "Gives a cluster of brokers a name. The type is a connector, and the options are those of its tables \
                  that say how to connect. `k.orders` is then topic `orders`.",
        example: "CREATE CATALOG k WITH ('type' = 'kafka', 'properties.bootstrap.servers' = 'localhost:9092')",
    },
    Entry {
        theme: CLUSTERS,
        name: "DROP CATALOG",
        syntax: "DROP CATALOG [IF EXISTS] k",
        meaning: "Forgets a catalog, unless a view reads one of its topics. The cluster stays as it is.",
        example: "DROP CATALOG k",
    },
    Entry {
        theme: CLUSTERS,
        name: "SHOW CATALOGS",
        syntax: "SHOW CATALOGS",
        meaning: "Lists the catalogs.",
        example: "SHOW CATALOGS",
    },
    Entry {
        theme: CLUSTERS,
        name: "SHOW TOPICS",
        syntax: "SHOW TOPICS FROM k [LIKE 'pattern']",
        meaning: "Lists the topics of a catalog, without the brokers' own.",
        example: "SHOW TOPICS FROM k LIKE 'order%'",
    },
    Entry {
        theme: CLUSTERS,
        name: "DESCRIBE TOPIC",
        syntax: "DESCRIBE TOPIC k.topic",
        meaning: "Shows the partitions or queues of a topic, their earliest and latest offsets and how many messages \
                  that makes, and the topic's settings. A name with other characters is quoted.",
        example: "DESCRIBE TOPIC k.`orders.v1`",
    },
    Entry {
        theme: CLUSTERS,
        name: "CREATE TOPIC",
        syntax: "CREATE TOPIC [IF NOT EXISTS] k.topic [WITH ('key' = 'value', …)]",
        meaning: "Creates a topic. Options are the number of partitions or queues, and the broker's settings of a \
                  topic.",
        example: "CREATE TOPIC k.orders WITH ('partitions' = '8')",
    },
    Entry {
        theme: CLUSTERS,
        name: "DROP TOPIC",
        syntax: "DROP TOPIC [IF EXISTS] k.topic",
        meaning: "Deletes a topic with all its messages.",
        example: "DROP TOPIC k.orders",
    },
    Entry {
        theme: CLUSTERS,
        name: "SHOW GROUPS",
        syntax: "SHOW GROUPS FROM k [LIKE 'pattern']",
        meaning: "Lists the consumer groups of a catalog, with state and number of members.",
        example: "SHOW GROUPS FROM k",
    },
    Entry {
        theme: CLUSTERS,
        name: "DESCRIBE GROUP",
        syntax: "DESCRIBE GROUP k.group",
        meaning: "Shows where a consumer group stands in each partition, where that ends, its lag, and its members.",
        example: "DESCRIBE GROUP k.billing",
    },
    Entry {
        theme: CLUSTERS,
        name: "RESET GROUP",
        syntax: "RESET GROUP k.group FOR TOPIC topic\n\
                 TO EARLIEST | LATEST | TIMESTAMP 'yyyy-MM-dd[ HH:mm:ss[.SSS][zone]]' | TIMESTAMP ms\n  \
                 | OFFSETS ('partition' = 'offset', …) [EXECUTE]",
        meaning: "Shows how the offsets of a consumer group would change; with EXECUTE they do, and it shows how they \
                  did. A time without a zone is in UTC, and a number is ms since 1970.",
        example: "RESET GROUP k.billing FOR TOPIC orders TO TIMESTAMP '2026-01-01 00:00:00' EXECUTE",
    },
    Entry {
        theme: SETTINGS,
        name: "SET",
        syntax: "SET 'key' = 'value'\nSET",
        meaning: "Sets something for the statements that come later. SET alone lists all settings.",
        example: "SET 'checkpoint.location' = '/data/checkpoints'",
    },
    Entry {
        theme: SETTINGS,
        name: "RESET",
        syntax: "RESET 'key'\nRESET",
        meaning: "Gives a setting its default again. RESET alone does so for all.",
        example: "RESET 'epoch.trigger'",
    },
    Entry {
        theme: SETTINGS,
        name: "SHOW ALL",
        syntax: "SHOW ALL\nSHOW datafusion.key",
        meaning: "Lists DataFusion's own settings, or shows one of them.",
        example: "SHOW ALL",
    },
];

const HEAD: &str = "# Statements

All statements, with an example of each. They end with `;`, and keywords may be in any case. What tables, types, options
and queries are is said in the [reference](sql.md#statements).

In a form, `[…]` may be left out, and `a | b` is one of both. This page is made from the code's own table
(`src/sql/reference.rs`), which the shell's help shows as well.
";

/// The entry of this name, or else those that have a word for each of these words' beginnings; all of them for none.
pub fn find(words: &str) -> Vec<&'static Entry> {
    let wanted: Vec<String> = words.replace(';', " ").split_whitespace().map(str::to_ascii_uppercase).collect();
    let name = wanted.join(" ");
    if let Some(entry) = STATEMENTS.iter().find(|entry| entry.name == name) {
        return vec![entry];
    }
    let has = |entry: &Entry, word: &str| entry.name.split(' ').any(|part| part.starts_with(word));
    STATEMENTS.iter().filter(|entry| wanted.iter().all(|word| has(entry, word))).collect()
}

/// The page `docs/statements.md`.
pub fn page() -> String {
    let mut page = HEAD.to_string();
    let mut theme = "";
    for entry in STATEMENTS {
        if entry.theme != theme {
            theme = entry.theme;
            page.push_str(&format!("\n## {theme}\n"));
        }
        let Entry { name, syntax, meaning, example, .. } = entry;
        page.push_str(&format!("\n### {name}\n\n{meaning}\n\n```text\n{syntax}\n```\n\n```sql\n{example};\n```\n"));
    }
    page
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_example_is_a_statement_of_that_name() {
        for Entry { name, example, .. } in STATEMENTS {
            let parsed = crate::sql::parse(example).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(parsed.len(), 1, "{name}");
            let mut words = example.split_whitespace();
            assert!(name.split(' ').all(|part| words.any(|word| word == part)), "{name}: {example}");
        }
    }

    #[test]
    fn names_are_unique_and_themes_stand_together() {
        let names: BTreeSet<&str> = STATEMENTS.iter().map(|entry| entry.name).collect();
        assert_eq!(names.len(), STATEMENTS.len());
        let mut themes: Vec<&str> = STATEMENTS.iter().map(|entry| entry.theme).collect();
        themes.dedup();
        assert_eq!(themes, [TABLES, ROWS, QUERIES, CLUSTERS, SETTINGS]);
    }

    #[test]
    fn statements_are_found_by_words() {
        let found = |words: &str| find(words).iter().map(|entry| entry.name).collect::<Vec<_>>();
        assert_eq!(found("create table"), ["CREATE TABLE"]);
        assert_eq!(found(" drop  topic; "), ["DROP TOPIC"]);
        assert_eq!(found("topic"), ["SHOW TOPICS", "DESCRIBE TOPIC", "CREATE TOPIC", "DROP TOPIC"]);
        assert_eq!(found("desc q"), ["DESCRIBE QUERY"]);
        assert_eq!(found("").len(), STATEMENTS.len());
        assert!(found("frobnicate").is_empty());
    }

    #[test]
    fn the_page_is_what_the_table_says() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/statements.md");
        if std::env::var("MILLSTREAM_WRITE_DOCS").is_ok_and(|write| write == "1") {
            std::fs::write(path, page()).unwrap();
        }
        let hint = "run the tests with MILLSTREAM_WRITE_DOCS=1";
        assert_eq!(std::fs::read_to_string(path).unwrap(), page(), "{hint}");
    }
}
