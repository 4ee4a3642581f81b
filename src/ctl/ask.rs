//! From words, which are `pd-ctl`'s, to a request of the placement driver's REST paths. Pure.

use serde_json::{Value, json};

use super::show::Form;

/// A request under `/pd/api/v1`, and how its answer is shown.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Ask {
    pub(super) method: &'static str,
    pub(super) path: String,
    pub(super) body: Option<Value>,
    pub(super) form: Form,
}

pub(super) const STORE_HELP: &str = "\
store [list]                             the stores
store ID                                 one store
store ID label KEY=VALUE...              set labels; an empty value removes one
store delete ID                          drain it: its replicas go elsewhere, then it is a tombstone
store delete ID force                    the same, and its machine or folder is gone for good: its address is free at once
store cancel-delete ID                   keep it after all
store weight ID LEADERS REGIONS          how much it takes, 1 being usual
store limit                              replicas a minute that stores may gain and lose
store limit ID|all RATE [add-peer|remove-peer]";

pub(super) const OPERATOR_HELP: &str = "\
operator [list]                          what is under way
operator records                         what has ended
operator check REGION                    what is done with a region, or was done last
operator add transfer-leader REGION STORE
operator add transfer-region REGION STORE...
operator add transfer-peer REGION FROM_STORE TO_STORE
operator add add-peer|add-learner|remove-peer REGION STORE
operator add merge-region SOURCE_REGION TARGET_REGION
operator add split-region REGION [scan|approximate]
operator add split-region REGION usekey HEX_KEY...
operator add scatter-region REGION
operator remove REGION                   give it up";

pub(super) const SCHEDULER_HELP: &str = "\
scheduler [list]                         what runs
scheduler add NAME                       such as balance-leader-scheduler
scheduler add evict-leader-scheduler STORE
scheduler remove NAME                    evict-leader-scheduler-STORE for one store
scheduler pause NAME|all SECONDS
scheduler resume NAME|all";

pub(super) const CONFIG_HELP: &str = "\
config [show]                            everything
config show schedule|replication         one section
config set KEY VALUE                     such as max-replicas 3";

pub(super) const MEMBER_HELP: &str = "\
member [list]                            the members of the placement driver
member add URL                           let a member in that will start at URL with --join
member delete name NAME                  take a member out
member delete id ID
member leader resign                     let another one lead
member leader transfer NAME";

fn get(path: impl Into<String>, form: Form) -> Ask {
    Ask { method: "GET", path: path.into(), body: None, form }
}

fn post(path: impl Into<String>, body: Value) -> Ask {
    Ask { method: "POST", path: path.into(), body: Some(body), form: Form::Words }
}

fn delete(path: impl Into<String>) -> Ask {
    Ask { method: "DELETE", path: path.into(), body: None, form: Form::Words }
}

fn id(text: &str, what: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("`{text}` is no id of a {what}"))
}

fn store_id(text: &str) -> Result<u64, String> {
    id(text, "store")
}

fn region_id(text: &str) -> Result<u64, String> {
    id(text, "region")
}

fn real(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|number: &f64| number.is_finite()).ok_or_else(|| format!("`{text}` is no number"))
}

fn usage(words: &[&str], help: &str) -> String {
    format!("`{}` is not understood. What there is:\n{help}", words.join(" "))
}

/// `member …`.
///
/// # Errors
/// What is not understood, and what would be.
pub(super) fn member(words: &[&str]) -> Result<Ask, String> {
    Ok(match words {
        [] | ["list"] => get("/members", Form::Members),
        ["add", url] => Ask { form: Form::Fields, ..post("/members", json!({ "url": url })) },
        ["delete", "name", name] => delete(format!("/members/name/{name}")),
        ["delete", "id", number] => delete(format!("/members/id/{}", id(number, "member")?)),
        ["leader", "resign"] => post("/leader/resign", json!({})),
        ["leader", "transfer", name] => post(format!("/leader/transfer/{name}"), json!({})),
        _ => return Err(usage(words, MEMBER_HELP)),
    })
}

/// `store …`.
///
/// # Errors
/// What is not understood, and what would be.
pub(super) fn store(words: &[&str]) -> Result<Ask, String> {
    Ok(match words {
        [] | ["list"] => get("/stores", Form::Stores),
        ["delete", id] => delete(format!("/store/{}", store_id(id)?)),
        ["delete", id, "force"] => delete(format!("/store/{}?force=true", store_id(id)?)),
        ["cancel-delete", id] => post(format!("/store/{}/state?state=Up", store_id(id)?), json!({})),
        ["weight", id, leader, region] => {
            let body = json!({ "leader": real(leader)?, "region": real(region)? });
            post(format!("/store/{}/weight", store_id(id)?), body)
        }
        ["limit"] => get("/stores/limit", Form::Limits),
        ["limit", id, rate, kinds @ ..] if kinds.len() <= 1 => {
            let mut body = json!({ "rate": real(rate)? });
            if let [kind] = kinds {
                body["type"] = json!(kind);
            }
            match *id {
                "all" => post("/stores/limit", body),
                id => post(format!("/store/{}/limit", store_id(id)?), body),
            }
        }
        [id, "label", labels @ ..] if !labels.is_empty() => {
            let pairs = labels.iter().map(|label| {
                let (key, value) = label.split_once('=').ok_or_else(|| format!("`{label}` is not KEY=VALUE"))?;
                Ok((key.to_string(), Value::from(value)))
            });
            let pairs: serde_json::Map<String, Value> = pairs.collect::<Result<_, String>>()?;
            post(format!("/store/{}/label", store_id(id)?), Value::Object(pairs))
        }
        [id] if id.starts_with(|first: char| first.is_ascii_digit()) => {
            get(format!("/store/{}", store_id(id)?), Form::Fields)
        }
        _ => return Err(usage(words, STORE_HELP)),
    })
}

/// `operator …`.
///
/// # Errors
/// What is not understood, and what would be.
pub(super) fn operator(words: &[&str]) -> Result<Ask, String> {
    let body = match words {
        [] | ["list"] => return Ok(get("/operators", Form::Lines)),
        ["records"] => return Ok(get("/operators/records", Form::Lines)),
        ["check", region] => return Ok(get(format!("/operators/{}", region_id(region)?), Form::Words)),
        ["remove", region] => return Ok(delete(format!("/operators/{}", region_id(region)?))),
        ["add", "transfer-leader", region, store] => {
            json!({ "region_id": region_id(region)?, "to_store_id": store_id(store)? })
        }
        ["add", "transfer-region", region, stores @ ..] if !stores.is_empty() => {
            let stores: Vec<u64> = stores.iter().map(|store| store_id(store)).collect::<Result<_, _>>()?;
            json!({ "region_id": region_id(region)?, "to_store_ids": stores })
        }
        ["add", "transfer-peer", region, from, to] => json!({
            "region_id": region_id(region)?,
            "from_store_id": store_id(from)?,
            "to_store_id": store_id(to)?,
        }),
        ["add", "add-peer" | "add-learner" | "remove-peer", region, store] => {
            json!({ "region_id": region_id(region)?, "store_id": store_id(store)? })
        }
        ["add", "merge-region", source, target] => {
            json!({ "source_region_id": region_id(source)?, "target_region_id": region_id(target)? })
        }
        ["add", "split-region", region] => json!({ "region_id": region_id(region)?, "policy": "scan" }),
        ["add", "split-region", region, policy @ ("scan" | "approximate")] => {
            json!({ "region_id": region_id(region)?, "policy": policy })
        }
        ["add", "split-region", region, "usekey", keys @ ..] if !keys.is_empty() => {
            json!({ "region_id": region_id(region)?, "policy": "usekey", "keys": keys })
        }
        ["add", "scatter-region", region] => json!({ "region_id": region_id(region)? }),
        _ => return Err(usage(words, OPERATOR_HELP)),
    };
    let mut body = body;
    body["name"] = json!(words[1]);
    Ok(post("/operators", body))
}

/// `scheduler …`.
///
/// # Errors
/// What is not understood, and what would be.
pub(super) fn scheduler(words: &[&str]) -> Result<Ask, String> {
    Ok(match words {
        [] | ["list"] => get("/schedulers", Form::Lines),
        ["add", name] => post("/schedulers", json!({ "name": name })),
        ["add", name, store] => post("/schedulers", json!({ "name": name, "store_id": store_id(store)? })),
        ["remove", name] => delete(format!("/schedulers/{name}")),
        ["pause", name, seconds] => {
            let seconds: u64 = seconds.parse().map_err(|_| format!("`{seconds}` is no number of seconds"))?;
            post(format!("/schedulers/{name}"), json!({ "delay": seconds }))
        }
        ["resume", name] => post(format!("/schedulers/{name}"), json!({ "delay": 0 })),
        _ => return Err(usage(words, SCHEDULER_HELP)),
    })
}

/// `config …`.
///
/// # Errors
/// What is not understood, and what would be.
pub(super) fn config(words: &[&str]) -> Result<Ask, String> {
    Ok(match words {
        [] | ["show"] | ["show", "all"] => get("/config", Form::Fields),
        ["show", "schedule"] => get("/config/schedule", Form::Fields),
        ["show", "replication"] => get("/config/replicate", Form::Fields),
        ["set", key, value] => {
            // Numbers and truth values as such, all else as text.
            let value =
                serde_json::from_str(value).ok().filter(|value: &Value| value.is_number() || value.is_boolean());
            let text = words[2];
            post("/config", json!({ *key: value.unwrap_or_else(|| text.into()) }))
        }
        _ => return Err(usage(words, CONFIG_HELP)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<&str> {
        text.split_whitespace().collect()
    }

    #[test]
    fn words_become_the_requests_of_pd_ctl() {
        let asked = |ask: Result<Ask, String>| {
            let ask = ask.expect("understood");
            format!("{} {} {}", ask.method, ask.path, ask.body.unwrap_or_default())
        };
        let stores = [
            ("", "GET /stores null"),
            ("7", "GET /store/7 null"),
            ("7 label zone=a disk=", r#"POST /store/7/label {"disk":"","zone":"a"}"#),
            ("delete 7", "DELETE /store/7 null"),
            ("delete 7 force", "DELETE /store/7?force=true null"),
            ("cancel-delete 7", "POST /store/7/state?state=Up {}"),
            ("weight 7 1 0.5", r#"POST /store/7/weight {"leader":1.0,"region":0.5}"#),
            ("limit", "GET /stores/limit null"),
            ("limit 7 30", r#"POST /store/7/limit {"rate":30.0}"#),
            ("limit all 30 add-peer", r#"POST /stores/limit {"rate":30.0,"type":"add-peer"}"#),
        ];
        stores.iter().for_each(|(text, expected)| assert_eq!(asked(store(&words(text))), *expected));
        let operators = [
            ("list", "GET /operators null"),
            ("check 2", "GET /operators/2 null"),
            ("remove 2", "DELETE /operators/2 null"),
            ("add transfer-leader 2 3", r#"POST /operators {"name":"transfer-leader","region_id":2,"to_store_id":3}"#),
            ("add remove-peer 2 3", r#"POST /operators {"name":"remove-peer","region_id":2,"store_id":3}"#),
            (
                "add transfer-region 2 3 4",
                r#"POST /operators {"name":"transfer-region","region_id":2,"to_store_ids":[3,4]}"#,
            ),
            (
                "add split-region 2 usekey 7a",
                r#"POST /operators {"keys":["7a"],"name":"split-region","policy":"usekey","region_id":2}"#,
            ),
        ];
        operators.iter().for_each(|(text, expected)| assert_eq!(asked(operator(&words(text))), *expected));
        let members = [
            ("", "GET /members null"),
            ("add http://h:1", r#"POST /members {"url":"http://h:1"}"#),
            ("delete name pd-2", "DELETE /members/name/pd-2 null"),
            ("delete id 17", "DELETE /members/id/17 null"),
            ("leader transfer pd-1", "POST /leader/transfer/pd-1 {}"),
        ];
        members.iter().for_each(|(text, expected)| assert_eq!(asked(member(&words(text))), *expected));
        let schedulers = [
            ("add evict-leader-scheduler 3", r#"POST /schedulers {"name":"evict-leader-scheduler","store_id":3}"#),
            ("remove evict-leader-scheduler-3", "DELETE /schedulers/evict-leader-scheduler-3 null"),
            ("resume all", r#"POST /schedulers/all {"delay":0}"#),
        ];
        schedulers.iter().for_each(|(text, expected)| assert_eq!(asked(scheduler(&words(text))), *expected));
        let settings = [
            ("set max-replicas 5", r#"POST /config {"max-replicas":5}"#),
            ("set max-store-down-time 10m", r#"POST /config {"max-store-down-time":"10m"}"#),
            ("set location-labels zone,host", r#"POST /config {"location-labels":"zone,host"}"#),
        ];
        settings.iter().for_each(|(text, expected)| assert_eq!(asked(config(&words(text))), *expected));
    }

    #[test]
    fn what_is_not_understood_is_answered_with_what_would_be() {
        for text in ["nonsense", "delete", "delete x", "7 label", "7 label zone", "weight 7 1", "limit 7 nan", "7 8"] {
            assert!(store(&words(text)).is_err(), "{text}");
        }
        for text in ["add", "add fly 2", "add transfer-leader 2", "add add-peer a 2", "remove"] {
            assert!(operator(&words(text)).is_err(), "{text}");
        }
        assert!(scheduler(&words("pause all soon")).is_err());
        assert!(member(&words("delete pd-1")).is_err() && member(&words("delete id pd-1")).is_err());
        let told = config(&words("set max-replicas")).expect_err("no value");
        assert!(told.contains("config set KEY VALUE"), "{told}");
    }
}
