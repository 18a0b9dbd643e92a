//! Patches of operations (RFC 6902), as far as programs beside a proxy use them: `test`, `add`, `replace` and `remove`.

use serde_json::Value;

/// The value after all operations; none is made if one fails, and the error says which.
pub(super) fn apply(mut value: Value, patch: &Value) -> Result<Value, String> {
    let operations = patch.as_array().ok_or("a patch is a list of operations")?;
    for (n, operation) in operations.iter().enumerate() {
        perform(&mut value, operation).map_err(|reason| format!("operation {n}: {reason}"))?;
    }
    Ok(value)
}

fn perform(value: &mut Value, operation: &Value) -> Result<(), String> {
    let path = operation["path"].as_str().ok_or("it has no path")?;
    let new = || operation.get("value").cloned().ok_or("it has no value");
    match operation["op"].as_str().unwrap_or_default() {
        "test" if value.pointer(path) == Some(&new()?) => Ok(()),
        "test" => Err(format!("{path} is another value")),
        "remove" => take(value, path).map(drop),
        "replace" => {
            *value.pointer_mut(path).ok_or_else(|| format!("there is no {path}"))? = new()?;
            Ok(())
        }
        "add" => put(value, path, new()?),
        other => Err(format!("{other:?} is not supported")),
    }
}

/// The container of what a path names, and the name in it.
fn parent<'a>(value: &'a mut Value, path: &str) -> Result<(&'a mut Value, String), String> {
    let (above, name) = path.rsplit_once('/').ok_or_else(|| format!("{path} is no path"))?;
    let container = value.pointer_mut(above).ok_or_else(|| format!("there is no {above}"))?;
    Ok((container, name.replace("~1", "/").replace("~0", "~")))
}

fn take(value: &mut Value, path: &str) -> Result<Value, String> {
    let missing = || format!("there is no {path}");
    let (container, name) = parent(value, path)?;
    match container {
        Value::Object(fields) => fields.remove(&name).ok_or_else(missing),
        Value::Array(items) => {
            let index = name.parse::<usize>().ok().filter(|index| *index < items.len());
            index.map(|index| items.remove(index)).ok_or_else(missing)
        }
        _ => Err(missing()),
    }
}

fn put(value: &mut Value, path: &str, new: Value) -> Result<(), String> {
    let (container, name) = parent(value, path)?;
    match container {
        Value::Object(fields) => drop(fields.insert(name, new)),
        Value::Array(items) if name == "-" => items.push(new),
        Value::Array(items) => {
            let index = name.parse::<usize>().ok().filter(|index| *index <= items.len());
            items.insert(index.ok_or_else(|| format!("there is no place {path}"))?, new);
        }
        _ => return Err(format!("{path} is in no object and no list")),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn operations_are_made_in_their_order_or_not_at_all() {
        let node = json!({ "spec": { "taints": [{ "key": "a" }, { "key": "b/c" }], "x": 1 } });
        let test = |n: usize, key: &str| json!({ "op": "test", "path": format!("/spec/taints/{n}/key"), "value": key });
        let remove = |path: &str| json!({ "op": "remove", "path": path });
        let patched = apply(node.clone(), &json!([test(1, "b/c"), remove("/spec/taints/1")])).unwrap();
        assert_eq!(patched["spec"]["taints"], json!([{ "key": "a" }]));
        for (patch, error) in [
            (
                json!([remove("/spec/taints/0"), test(0, "a")]),
                "operation 1: /spec/taints/0/key is another value",
            ),
            (json!([remove("/spec/taints/2")]), "operation 0: there is no /spec/taints/2"),
            (json!([{ "op": "move", "path": "/a" }]), "operation 0: \"move\" is not supported"),
            (json!({}), "a patch is a list of operations"),
        ] {
            assert_eq!(apply(node.clone(), &patch).unwrap_err(), error);
        }
        let patch = json!([
            { "op": "add", "path": "/spec/a~1b", "value": 2 },
            { "op": "add", "path": "/spec/taints/-", "value": { "key": "z" } },
            { "op": "add", "path": "/spec/taints/0", "value": { "key": "first" } },
            { "op": "replace", "path": "/spec/x", "value": 3 },
        ]);
        let expected = json!({ "spec": { "a/b": 2, "x": 3, "taints": [{ "key": "first" }, { "key": "a" }, { "key": "b/c" }, { "key": "z" }] } });
        assert_eq!(apply(node, &patch).unwrap(), expected);
    }
}
