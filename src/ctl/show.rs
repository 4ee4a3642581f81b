//! Answers of the placement driver as people read them. Pure.

use std::fmt::Write as _;

use serde_json::Value;

/// How an answer is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// A sentence.
    Words,
    /// A list, an item a line.
    Lines,
    /// An object of objects, a value a line.
    Fields,
    /// `/stores`.
    Stores,
    /// `/stores/limit`.
    Limits,
    /// `/members`.
    Members,
}

/// The answer as text; it ends with a new line unless it is empty.
pub(super) fn text(form: Form, answer: &Value) -> String {
    match form {
        Form::Words => plain(answer) + "\n",
        Form::Lines => items(answer).fold(String::new(), |out, item| out + &plain(item) + "\n"),
        Form::Fields => {
            let mut out = String::new();
            fields(&mut out, "", answer);
            out
        }
        Form::Stores => table(STORES, items(&answer["stores"]).map(store_row)),
        Form::Limits => {
            let limits = answer.as_object().into_iter().flatten();
            table(
                &["store", "add-peer", "remove-peer"],
                limits
                    .map(|(store, limit)| vec![store.clone(), plain(&limit["add-peer"]), plain(&limit["remove-peer"])]),
            )
        }
        Form::Members => {
            let leader = &answer["leader"]["member_id"];
            table(
                &["member", "id", "addresses", "role"],
                items(&answer["members"]).map(|member| {
                    let urls: Vec<String> = items(&member["client_urls"]).map(plain).collect();
                    let role = match &member["is_learner"] {
                        Value::Bool(true) => "learns",
                        _ if &member["member_id"] == leader => "leads",
                        _ => "follows",
                    };
                    vec![plain(&member["name"]), plain(&member["member_id"]), urls.join(","), role.to_string()]
                }),
            )
        }
    }
}

const STORES: &[&str] = &["id", "address", "state", "leaders", "regions", "capacity", "available", "weights", "labels"];

fn store_row(item: &Value) -> Vec<String> {
    let (store, status) = (&item["store"], &item["status"]);
    let labels: Vec<String> =
        items(&store["labels"]).map(|label| format!("{}={}", plain(&label["key"]), plain(&label["value"]))).collect();
    vec![
        plain(&store["id"]),
        plain(&store["address"]),
        plain(&store["state_name"]),
        plain(&status["leader_count"]),
        plain(&status["region_count"]),
        plain(&status["capacity"]),
        plain(&status["available"]),
        format!("{}/{}", plain(&status["leader_weight"]), plain(&status["region_weight"])),
        labels.join(","),
    ]
}

fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

/// Text without quotes, nothing for null, all else as JSON.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

/// A line `path  value` for each value that is no object.
fn fields(out: &mut String, path: &str, value: &Value) {
    match value {
        Value::Object(inner) if !inner.is_empty() => {
            for (name, value) in inner {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                fields(out, &path, value);
            }
        }
        // Writing to a string cannot fail.
        value => drop(writeln!(out, "{path:<44} {}", plain(value))),
    }
}

/// Columns as wide as what is in them.
fn table(head: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let head: Vec<String> = head.iter().map(|name| (*name).to_string()).collect();
    let rows: Vec<Vec<String>> = std::iter::once(head).chain(rows).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..rows[0].len()).map(width).collect();
    rows.iter().fold(String::new(), |out, row| {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        out + cells.join("  ").trim_end() + "\n"
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn tables_lists_and_fields_are_lines() {
        let stores = json!({ "count": 1, "stores": [{
            "store": { "id": 12, "address": "10.0.0.1:20160", "state_name": "Up",
                       "labels": [{ "key": "zone", "value": "a" }] },
            "status": { "leader_count": 3, "region_count": 5, "capacity": "10GiB", "available": "5GiB",
                        "leader_weight": 1.0, "region_weight": 0.5 },
        }]});
        assert_eq!(
            text(Form::Stores, &stores),
            "id  address         state  leaders  regions  capacity  available  weights  labels\n\
             12  10.0.0.1:20160  Up     3        5        10GiB     5GiB       1.0/0.5  zone=a\n"
        );
        assert_eq!(text(Form::Lines, &json!(["a", "b"])), "a\nb\n");
        assert_eq!(text(Form::Lines, &json!([])), "");
        assert_eq!(text(Form::Words, &json!("Done.")), "Done.\n");
        let shown = text(Form::Fields, &json!({ "schedule": { "limit": 4 }, "name": "pd" }));
        let lines: Vec<Vec<&str>> = shown.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines, [["name", "pd"], ["schedule.limit", "4"]]);
        let members = json!({
            "members": [{ "name": "a", "member_id": 1, "client_urls": ["http://h:1"] },
                        { "name": "b", "member_id": 2, "client_urls": ["http://h:2"] },
                        { "name": "", "member_id": 3, "client_urls": [], "is_learner": true }],
            "leader": { "member_id": 2 },
        });
        assert_eq!(
            text(Form::Members, &members),
            "member  id  addresses   role\na       1   http://h:1  follows\nb       2   http://h:2  leads\n        3               learns\n"
        );
    }
}
