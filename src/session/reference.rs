//! All options of tables and all settings, for help without a network and for the page `docs/options.md`.
//!
//! The idea: connectors, formats and settings say what theirs mean beside the code that takes them; here it is only put
//! together. The page is compared with [`page`].

use super::settings;
use crate::connector::{Connector, Connectors, OptionEntry, Role};
use crate::error::{Error, Result};
use crate::format::{self, FORMATS};
use crate::sql::options::did_you_mean;
use crate::sql::types::sql_type;

const HEAD: &str = "# Options

What `SET` and the `WITH` list of a table take. What stands behind it is said in the [reference](sql.md).

A duration is a number and a unit: `500 ms`, `10 s`, `1 min`, `2 h`, `1 d`. A size is `1024`, `64 kb`, `128 mb` or
`1 gb`, in powers of 1024. In a key `*` stands for any text. What is unknown or malformed is refused, with the nearest
that is known.

This page is made from the code's own tables, which `\\h 'option'` in the shell shows as well.

## Settings

`SET 'key' = 'value'` holds for the statements after it. Those of DataFusion begin with `datafusion.`; `SHOW ALL` lists
them.

";

const OF_FORMATS: &str = "
## Formats

Of [messages](sql.md#formats). Options of another format than the table's are refused.
";

const OF_CONNECTORS: &str = "
## Connectors

Every table has `'connector'`. *At once* marks options whose change applies at once, also to an epoch that is run again;
all others belong to the query's [definition](sql.md#changing-a-query).
";

/// The page `docs/options.md`.
pub fn page() -> String {
    let of_setting = |[key, takes, default, meaning]: [String; 4]| [code(&key), takes, default, meaning];
    let settings = settings::described().map(of_setting);
    let mut page = HEAD.to_string() + &table(["setting", "takes", "default", "meaning"], settings);
    page += OF_FORMATS;
    for name in FORMATS {
        let rows = format::options(name).iter().map(cells);
        let rows = table(["option", "for", "takes", "default", "meaning"], rows);
        page += &format!("\n### {name}\n\n{rows}");
    }
    page += OF_CONNECTORS;
    Connectors::standard().all().for_each(|connector| page += &section(connector.as_ref()));
    page
}

/// What the page says of a connector.
fn section(connector: &dyn Connector) -> String {
    let (options, metadata) = (connector.options(), connector.metadata());
    let mut section = format!("\n### {}\n\n", connector.name());
    let mark = |is_so: bool| if is_so { "yes" } else { "" }.to_string();
    if options.is_empty() {
        section += "It has no options.\n";
    } else {
        let rows = options.iter().map(|entry| {
            let [key, role, takes, default, meaning] = cells(entry);
            [key, role, takes, default, meaning, mark(connector.is_operational(entry.key))]
        });
        section += &table(["option", "for", "takes", "default", "meaning", "at once"], rows);
    }
    if !metadata.is_empty() {
        let rows = metadata.iter().map(|known| {
            let any = if known.is_prefix() { "*" } else { "" };
            let data_type = code(&sql_type(&known.data_type));
            [code(&format!("{}{any}", known.key)), data_type, mark(known.writable), known.meaning.to_string()]
        });
        section += &format!("\n{}", table(["metadata key", "type", "written", "meaning"], rows));
    }
    section
}

fn cells(entry: &OptionEntry) -> [String; 5] {
    let OptionEntry { key, role, takes, default, meaning } = *entry;
    [code(key), role.map(use_of).unwrap_or_default().into(), takes.into(), default.into(), meaning.into()]
}

fn use_of(role: Role) -> &'static str {
    match role {
        Role::Source => "reading",
        Role::Sink => "writing",
    }
}

fn code(text: &str) -> String {
    format!("`{text}`")
}

/// A table of Markdown.
fn table<const N: usize>(names: [&str; N], rows: impl Iterator<Item = [String; N]>) -> String {
    let line = |cells: [String; N]| format!("| {} |\n", cells.map(|cell| cell.replace('|', "\\|")).join(" | "));
    let head = line(names.map(str::to_string)) + "|" + &"---|".repeat(N) + "\n";
    rows.fold(head, |table, row| table + &line(row))
}

/// What is said of an option or a setting: a paragraph for each of its meanings.
///
/// Errors: nothing has this name.
pub(crate) fn options(key: &str) -> Result<String> {
    let all = all_options();
    let mut found: Vec<(OptionEntry, Vec<&str>)> = vec![];
    for (owner, entries) in &all {
        // One that is there by name is not meant by a star.
        let named = entries.iter().find(|entry| entry.key == key);
        let Some(entry) = named.or_else(|| entries.iter().find(|entry| entry.covers(key))) else { continue };
        match found.iter_mut().find(|(known, _)| known == entry) {
            Some((_, owners)) => owners.push(owner),
            None => found.push((*entry, vec![*owner])),
        }
    }
    let of_setting = |[_, takes, default, meaning]: [String; 4]| answer(key, "setting", &takes, &default, &meaning);
    let settings = settings::described().filter(|[name, ..]| name == key).map(of_setting);
    let of_option = |(entry, owners): &(OptionEntry, Vec<&str>)| {
        let role = entry.role.map(|role| format!("; {}", use_of(role))).unwrap_or_default();
        answer(key, &format!("{}{role}", owners.join(", ")), entry.takes, entry.default, entry.meaning)
    };
    let answers: Vec<String> = settings.chain(found.iter().map(of_option)).collect();
    if answers.is_empty() {
        let settings: Vec<String> = settings::described().map(|[name, ..]| name).collect();
        let options = all.iter().flat_map(|(_, entries)| entries.iter().map(|entry| entry.key));
        let hint = did_you_mean(key, settings.iter().map(String::as_str).chain(options));
        return Err(Error::usage(format!("there is no option and no setting '{key}'{hint}")));
    }
    Ok(answers.join("\n"))
}

/// The options of formats and connectors, by name.
fn all_options() -> Vec<(&'static str, Vec<OptionEntry>)> {
    let of_formats = FORMATS.map(|name| (name, format::options(name).to_vec()));
    let connectors = Connectors::standard();
    let of_connectors = connectors.all().map(|connector| (connector.name(), connector.options()));
    of_formats.into_iter().chain(of_connectors).collect()
}

fn answer(key: &str, owners: &str, takes: &str, default: &str, meaning: &str) -> String {
    let lines = [("", meaning), ("takes: ", takes), ("default: ", default)];
    let lines =
        lines.iter().filter(|(_, text)| !text.is_empty()).map(|(head, text)| format!("\n  {head}{}", plain(text)));
    format!("'{key}' ({owners}){}", lines.collect::<String>())
}

/// Markdown without its links.
pub(super) fn plain(text: &str) -> String {
    let (mut plain, mut rest) = (String::new(), text);
    while let Some((before, link)) = rest.split_once('[') {
        let parts = link.split_once("](").and_then(|(shown, target)| Some((shown, target.split_once(')')?.1)));
        let Some((shown, behind)) = parts else { break };
        plain.extend([before, shown]);
        rest = behind;
    }
    plain + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_for_pages() {
        assert_eq!(plain("a [b c](d.md#e), [f](g)"), "a b c, f");
        assert_eq!(plain("a[0] is no link"), "a[0] is no link");
    }

    #[test]
    fn an_option_is_found_by_name_or_by_a_star() {
        let mode = options("scan.startup.mode").unwrap();
        assert!(mode.starts_with("'scan.startup.mode' (kafka, rocketmq; reading)\n  where"), "{mode}");
        assert!(options("properties.sasl.username").unwrap().contains("(kafka, upsert-kafka)\n  librdkafka's"));
        assert!(!options("properties.bootstrap.servers").unwrap().contains("librdkafka"));
        assert!(options("fields.id.kind").unwrap().contains("takes: `random`, `sequence`"));
        assert!(
            options("json.encode.ignore-null-fields").unwrap().starts_with("'json.encode.ignore-null-fields' (json;")
        );
        let text = options("shell.output").unwrap();
        assert!(text.starts_with("'shell.output' (setting)\n  how the shell shows rows\n  takes: `table`"), "{text}");
        let error = options("scan.startup.mod").unwrap_err().to_string();
        assert_eq!(error, "there is no option and no setting 'scan.startup.mod'; did you mean 'scan.startup.mode'?");
    }

    #[test]
    fn what_all_connectors_offer_is_described_once() {
        for (owner, entries) in all_options() {
            let mut keys: Vec<&str> = entries.iter().map(|entry| entry.key).collect();
            keys.sort_unstable();
            keys.dedup();
            assert_eq!(keys.len(), entries.len(), "{owner}");
        }
    }

    #[test]
    fn the_page_is_what_the_tables_say() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/options.md");
        if std::env::var("MILLSTREAM_WRITE_DOCS").is_ok_and(|write| write == "1") {
            std::fs::write(path, page()).unwrap();
        }
        let hint = "run the tests with MILLSTREAM_WRITE_DOCS=1";
        assert_eq!(std::fs::read_to_string(path).unwrap(), page(), "{hint}");
    }
}
