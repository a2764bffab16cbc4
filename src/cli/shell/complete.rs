//! What Tab offers: what may stand at the cursor, by the words before it.
//!
//! The idea: the pieces of the statement before the cursor say what is expected (a table after FROM, an option in a
//! WITH list, a topic behind a catalog's dot), [`Names`] says what there is, and the reference of statements how a
//! statement goes on. It helps and does not judge: what it does not offer may still be right.

use std::collections::BTreeMap;

use super::lexer::{Kind, Piece, is_keyword, keywords, pieces};
use super::meta::{self, Argument};
use super::names::Names;
use crate::sql::reference::STATEMENTS;
use crate::sql::types::quote;

/// Words that a relation follows.
const BEFORE_RELATIONS: [&str; 7] = ["FROM", "JOIN", "INTO", "TABLE", "VIEW", "DESCRIBE", "DESC"];

/// Where the word at `cursor` starts, and what may take its place up to there, in the order in which it is offered.
pub(super) fn complete(text: &str, cursor: usize, names: &dyn Names) -> (usize, Vec<String>) {
    if text.trim_start().starts_with('\\') {
        return command(&text[..cursor], names);
    }
    let all = pieces(text);
    let begin = all.iter().rposition(|piece| piece.is(";") && piece.start < cursor).map_or(0, |index| index + 1);
    let end = all[begin..].iter().position(|piece| piece.is(";")).map_or(all.len(), |index| begin + index);
    let at = all[begin..end].iter().find(|piece| piece.start < cursor && cursor <= piece.end());
    // Behind its closing quote a text is over.
    let at = at.filter(|piece| match piece.kind {
        Kind::Word | Kind::Comment => true,
        Kind::Text | Kind::Quoted => piece.is_open || cursor < piece.end(),
        _ => false,
    });
    let start = at.map_or(cursor, |piece| piece.start);
    // What is being typed says nothing yet.
    let says = |piece: &Piece<'_>| piece.counts() && Some(piece) != at;
    let statement: Vec<Piece<'_>> = all[begin..end].iter().copied().filter(says).collect();
    let before: Vec<Piece<'_>> = statement.iter().copied().take_while(|piece| piece.start < start).collect();
    let context = Context { before: &before, statement: &statement, names };
    match at.map(|piece| (piece.kind, piece.is_open)) {
        Some((Kind::Comment, _)) => (cursor, vec![]),
        Some((Kind::Text, is_open)) => {
            let prefix = &text[start + 1..cursor];
            let (words, close) = context.texts();
            let close = if is_open { close } else { "" };
            (start + 1, beginning(words, prefix).into_iter().map(|word| word + close).collect())
        }
        Some((Kind::Quoted, _)) => {
            let names = beginning(context.words("").names, &text[start + 1..cursor]);
            (start, names.iter().map(|name| quote(name)).collect())
        }
        _ => {
            let prefix = &text[start..cursor];
            let offer = context.words(prefix);
            let names = beginning(offer.names, prefix).into_iter().map(written);
            let mut words = beginning(offer.words, prefix);
            if prefix.chars().any(char::is_lowercase) && !prefix.chars().any(char::is_uppercase) {
                words.iter_mut().for_each(|word| *word = word.to_lowercase());
            }
            (start, names.chain(words).collect())
        }
    }
}

/// Those that begin with the prefix, in any case, each once.
fn beginning(mut candidates: Vec<String>, prefix: &str) -> Vec<String> {
    let prefix = prefix.to_lowercase();
    candidates.retain(|candidate| candidate.to_lowercase().starts_with(&prefix));
    candidates.sort();
    candidates.dedup();
    candidates
}

/// A name as it is written: in backticks, where it needs them.
fn written(name: String) -> String {
    let is_plain = name.chars().all(|c| c.is_alphanumeric() || c == '_') && !name.starts_with(|c: char| c.is_numeric());
    if is_plain && !is_keyword(&name) { name } else { quote(&name) }
}

/// What is offered: names, which may need quotes, and words, which are written like what is typed.
#[derive(Default)]
struct Offer {
    names: Vec<String>,
    words: Vec<String>,
}

struct Context<'a> {
    /// The pieces of the statement before the cursor.
    before: &'a [Piece<'a>],
    /// All of it, but for what is being typed.
    statement: &'a [Piece<'a>],
    names: &'a dyn Names,
}

impl Context<'_> {
    /// What may stand between single quotes, and what closes it.
    fn texts(&self) -> (Vec<String>, &'static str) {
        let keys = |words: BTreeMap<String, Vec<String>>| words.into_keys().collect();
        match self.before {
            [.., query] if query.is("QUERY") => (self.names.queries(), "'"),
            [set] if set.is("SET") => (keys(self.names.settings()), "' = '"),
            [reset] if reset.is("RESET") => (keys(self.names.settings()), "'"),
            [set, key, equals] if set.is("SET") && (equals.is("=") || equals.is("TO")) => {
                (self.names.settings().remove(&key.unquoted()).unwrap_or_default(), "'")
            }
            before => {
                let Some(list) = self.option_list() else { return (vec![], "'") };
                let mut options = self.names.options(&written_options(list));
                match before {
                    [.., key, equals] if equals.is("=") => (options.remove(&key.unquoted()).unwrap_or_default(), "'"),
                    [.., last] if last.is("(") || last.is(",") => {
                        let taken = written_options(list);
                        options.retain(|key, _| !taken.contains_key(key));
                        (keys(options), "' = '")
                    }
                    _ => (vec![], "'"),
                }
            }
        }
    }

    /// The pieces of the list of a table's options that the cursor is in, also those behind the cursor.
    fn option_list(&self) -> Option<&[Piece<'_>]> {
        if self.starts_with(&["CREATE", "CATALOG"]) || self.starts_with(&["CREATE", "TOPIC"]) {
            return None;
        }
        let mut depth = 0;
        let opening = self.before.iter().rposition(|piece| {
            depth += i32::from(piece.is(")")) - i32::from(piece.is("("));
            depth < 0
        })?;
        let word = self.before.get(opening.checked_sub(1)?)?;
        let is_list = word.is("WITH") || word.is("OPTIONS");
        is_list.then(|| &self.statement[opening + 1..])
    }

    fn starts_with(&self, words: &[&str]) -> bool {
        words.len() <= self.before.len() && words.iter().zip(self.before).all(|(word, piece)| piece.is(word))
    }

    /// What may stand outside of quotes.
    fn words(&self, prefix: &str) -> Offer {
        let names = |names| Offer { names, words: vec![] };
        let going_on = self.going_on();
        match self.before {
            [.., owner, dot] if dot.is(".") => names(self.members(&owner.unquoted())),
            [show, .., last] if show.is("SHOW") && last.is("FROM") => {
                let (mut catalogs, columns) =
                    (self.names.catalogs(), self.before.iter().any(|word| word.is("COLUMNS")));
                if columns {
                    catalogs.extend(self.names.relations());
                }
                names(catalogs)
            }
            [.., last] if last.is("QUERY") => names(self.names.queries()),
            [.., last] if last.is("TOPIC") => names(self.names.catalogs()),
            [describe, last] if describe.is("DESCRIBE") && last.is("GROUP") => names(self.names.catalogs()),
            [.., last] if BEFORE_RELATIONS.iter().any(|word| last.is(word)) => {
                let mut all = self.names.relations();
                all.extend(self.names.catalogs());
                Offer { names: all, words: going_on }
            }
            _ if !going_on.is_empty() => Offer { names: vec![], words: going_on },
            _ => self.anything(prefix),
        }
    }

    /// How statements go on whose first words these are.
    fn going_on(&self) -> Vec<String> {
        if self.starts_with(&["SELECT"]) || self.starts_with(&["WITH"]) {
            return vec![];
        }
        let typed: Vec<String> = self.before.iter().map(|piece| piece.text.to_ascii_uppercase()).collect();
        let next = |name: &str| {
            let words: Vec<&str> =
                name.split_whitespace().filter(|word| word.chars().all(|c| c.is_ascii_uppercase())).collect();
            let is_begun = words.len() > typed.len() && words.iter().zip(&typed).all(|(word, typed)| word == typed);
            is_begun.then(|| words[typed.len()].to_owned())
        };
        let mut words: Vec<String> = STATEMENTS.iter().filter_map(|entry| next(entry.name)).collect();
        if typed.is_empty() {
            words.extend(["SELECT", "WITH", "VALUES"].map(str::to_owned));
        }
        words
    }

    /// Within a query: columns of its tables, and once a letter is typed functions and keywords.
    fn anything(&self, prefix: &str) -> Offer {
        let tables = self.tables();
        let mut names: Vec<String> = tables.iter().flat_map(|(_, table)| self.names.columns(table)).collect();
        names.extend(tables.into_iter().map(|(name, _)| name));
        let mut words = vec![];
        if !prefix.is_empty() {
            names.extend(self.names.functions());
            words.extend(keywords().map(str::to_owned));
        }
        Offer { names, words }
    }

    /// Behind a dot: the topics of a catalog, or the columns of a table.
    fn members(&self, owner: &str) -> Vec<String> {
        if self.names.catalogs().iter().any(|catalog| catalog == owner) {
            return self.names.topics(owner);
        }
        let table = self.tables().into_iter().find(|(name, _)| name == owner);
        self.names.columns(&table.map_or_else(|| owner.to_owned(), |(_, table)| table))
    }

    /// The tables of the statement, each under the name that it has there.
    fn tables(&self) -> Vec<(String, String)> {
        let is_name = |piece: &Piece<'_>| match piece.kind {
            Kind::Word => !is_keyword(piece.text),
            kind => kind == Kind::Quoted,
        };
        let mut tables = vec![];
        for (index, word) in self.statement.iter().enumerate() {
            if !BEFORE_RELATIONS.iter().any(|known| word.is(known)) {
                continue;
            }
            let mut rest = self.statement[index + 1..].iter();
            let Some(table) = rest.next().filter(|piece| is_name(piece)).map(Piece::unquoted) else { continue };
            let alias = rest.find(|piece| !piece.is("AS")).filter(|piece| is_name(piece)).map(Piece::unquoted);
            tables.push((alias.unwrap_or_else(|| table.clone()), table));
        }
        tables
    }
}

/// The options that a list has, from after its bracket on, as far as they are complete.
fn written_options(list: &[Piece<'_>]) -> BTreeMap<String, String> {
    let end = list.iter().position(|piece| piece.is(")")).unwrap_or(list.len());
    let pair = |pieces: &[Piece<'_>]| match pieces {
        [key, equals, value] if equals.is("=") && key.kind == Kind::Text && value.kind == Kind::Text => {
            (!value.is_open).then(|| (key.unquoted(), value.unquoted()))
        }
        _ => None,
    };
    list[..end].windows(3).filter_map(pair).collect()
}

/// A command and what follows it.
fn command(typed: &str, names: &dyn Names) -> (usize, Vec<String>) {
    let Some(space) = typed.rfind(char::is_whitespace).filter(|space| typed[..*space].contains('\\')) else {
        let start = typed.find('\\').unwrap_or(0);
        let all = meta::COMMANDS.iter().flat_map(|(names, ..)| names.iter().map(|name| format!("\\{name}")));
        return (start, beginning(all.collect(), &typed[start..]));
    };
    let (name, _) = meta::split(typed);
    let candidates: Vec<String> = match meta::find(name).map(|(_, argument)| argument) {
        Some(Argument::Relation | Argument::Pattern) => names.relations().into_iter().map(written).collect(),
        Some(Argument::Statement) => STATEMENTS.iter().map(|entry| entry.name.to_owned()).collect(),
        Some(argument) => argument.words().iter().map(|word| (*word).to_owned()).collect(),
        None => vec![],
    };
    // The name of a statement has spaces.
    let is_statement = matches!(meta::find(name), Some((_, Argument::Statement)));
    let start = match typed.find(char::is_whitespace).filter(|_| is_statement) {
        Some(first) => first + 1,
        None => space + 1,
    };
    (start, beginning(candidates, &typed[start..]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::options::Words;

    struct Shop;

    fn texts(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| word.to_string()).collect()
    }

    impl Names for Shop {
        fn relations(&self) -> Vec<String> {
            texts(&["orders", "items", "order"])
        }

        fn columns(&self, relation: &str) -> Vec<String> {
            match relation {
                "orders" => texts(&["order_id", "amount", "Total"]),
                "items" => texts(&["item_id", "name"]),
                _ => vec![],
            }
        }

        fn functions(&self) -> Vec<String> {
            texts(&["abs", "date_bin"])
        }

        fn settings(&self) -> Words {
            [("shell.output".into(), texts(&["csv", "json"])), ("parallelism".into(), vec![])].into()
        }

        fn options(&self, written: &BTreeMap<String, String>) -> Words {
            let connectors = ("connector".to_string(), texts(&["kafka", "print"]));
            match written.get("connector").map(String::as_str) {
                Some("kafka") => [connectors, ("topic".into(), vec![]), ("format".into(), texts(&["json"]))].into(),
                _ => [connectors].into(),
            }
        }

        fn catalogs(&self) -> Vec<String> {
            texts(&["k"])
        }

        fn topics(&self, catalog: &str) -> Vec<String> {
            assert_eq!(catalog, "k");
            texts(&["orders", "my.returns"])
        }

        fn queries(&self) -> Vec<String> {
            texts(&["shell/out", "copied"])
        }
    }

    /// Completes at `|`: the text up to there with each offer in place.
    fn check(marked: &str, expected: &[&str]) {
        let cursor = marked.find('|').unwrap();
        let text = marked.replacen('|', "", 1);
        let (start, found) = complete(&text, cursor, &Shop);
        let found: Vec<String> = found.iter().map(|word| format!("{}{word}", &text[..start])).collect();
        assert_eq!(found, expected, "{marked}");
    }

    #[test]
    fn tables_come_where_tables_stand() {
        check("SELECT * FROM o|", &["SELECT * FROM `order`", "SELECT * FROM orders"]);
        check("SELECT 1; select * from i|", &["SELECT 1; select * from items"]);
        check("INSERT INTO it|", &["INSERT INTO items"]);
        check("SELECT * FROM `or|", &["SELECT * FROM `order`", "SELECT * FROM `orders`"]);
        check("SELECT * FROM x JOIN k|", &["SELECT * FROM x JOIN k"]);
    }

    #[test]
    fn columns_are_those_of_the_statements_tables() {
        check("SELECT tot| FROM orders", &["SELECT Total"]);
        check("SELECT o.| FROM orders AS o", &["SELECT o.Total", "SELECT o.amount", "SELECT o.order_id"]);
        check("SELECT items.n| FROM orders, x JOIN items", &["SELECT items.name"]);
        check("SELECT am|; SELECT 1 FROM orders", &[]);
        check("SELECT * FROM orders WHERE am|", &["SELECT * FROM orders WHERE amount"]);
        let all = ["amount", "items", "name", "item_id", "order_id", "orders", "Total"];
        let (_, found) = complete("SELECT  FROM orders JOIN items", 7, &Shop);
        assert_eq!(found.len(), all.len(), "{found:?}");
        assert!(all.iter().all(|name| found.iter().any(|one| one == name)), "{found:?}");
    }

    #[test]
    fn functions_and_keywords_are_written_as_one_types() {
        check("SELECT date_| FROM orders", &["SELECT date_bin"]);
        check("SELECT 1 FROM orders WHER|", &["SELECT 1 FROM orders WHERE"]);
        check("select 1 from orders wher|", &["select 1 from orders where"]);
        check("SELECT 1 -- whe|", &[]);
    }

    #[test]
    fn statements_go_on_as_the_reference_says() {
        check("sel|", &["select"]);
        check("SHOW TAB|", &["SHOW TABLES"]);
        check("drop vi|", &["drop view"]);
    }

    #[test]
    fn queries_that_were_started_have_names() {
        check("STOP QUERY |", &["STOP QUERY copied", "STOP QUERY `shell/out`"]);
        check("describe query sh|", &["describe query `shell/out`"]);
        check("RESTART QUERY 'sh|", &["RESTART QUERY 'shell/out'"]);
        check("RESTART QUERY 'shell/|'", &["RESTART QUERY 'shell/out"]);
    }

    #[test]
    fn topics_stand_behind_their_catalog() {
        check("SELECT * FROM k.|", &["SELECT * FROM k.`my.returns`", "SELECT * FROM k.orders"]);
        check("DESCRIBE TOPIC k.o|", &["DESCRIBE TOPIC k.orders"]);
        check("SHOW TOPICS FROM |", &["SHOW TOPICS FROM k"]);
        check("DESCRIBE TOPIC |", &["DESCRIBE TOPIC k"]);
    }

    #[test]
    fn settings_and_options_have_keys_and_words() {
        check("SET 's|", &["SET 'shell.output' = '"]);
        check("SET 'shell.output' = 'j|", &["SET 'shell.output' = 'json'"]);
        check("RESET 'p|'", &["RESET 'parallelism"]);
        let create = "CREATE TABLE t (a INT) WITH ('connector' = 'kafka', ";
        check("CREATE TABLE t (a INT) WITH ('|", &["CREATE TABLE t (a INT) WITH ('connector' = '"]);
        check(
            "CREATE TABLE t (a INT) WITH ('connector' = 'k|",
            &["CREATE TABLE t (a INT) WITH ('connector' = 'kafka'"],
        );
        check(&format!("{create}'|"), &[&format!("{create}'format' = '"), &format!("{create}'topic' = '")]);
        check(&format!("{create}'format' = '|'"), &[&format!("{create}'format' = 'json")]);
        check("SELECT * FROM t WHERE a IN ('|", &[]);
    }

    #[test]
    fn commands_complete_too() {
        check("\\ti|", &["\\timing"]);
        check("\\o m|", &["\\o markdown"]);
        check("\\timing o|", &["\\timing off", "\\timing on"]);
        check("\\d it|", &["\\d items"]);
        check("\\h show tab|", &["\\h SHOW TABLES"]);
    }
}
