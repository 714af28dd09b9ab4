//! `update`: other limits for a container that exists.

use std::{fs, io::Read, path::Path};

use serde_json::{Map, Value, json};

use super::{
    Context,
    args::UpdateArgs,
    claims,
    error::OciError,
    pods,
    record::Status,
    store::{self, Held},
    vm::Vm,
};
use crate::{
    guest::Agent,
    pod::{place::PodDir, size},
};

/// Changes the limits, and the VM with them.
///
/// # Errors
/// It has stopped, or a limit can't be applied.
pub fn update(context: &Context, args: &UpdateArgs) -> Result<(), OciError> {
    let id = store::parse_id(&args.id)?;
    let held = Held::of(&context.root, &id)?;
    let mut record = held.record()?;
    if record.status() == Status::Stopped {
        return Err(OciError::NotRunning);
    }
    let resources = match &args.resources {
        Some(path) => read(path)?,
        None => of_options(args)?,
    };
    let malformed = |source| OciError::Json {
        path: args.resources.clone().unwrap_or_default(),
        source,
    };
    let mut resources = serde_json::from_value(resources).map_err(malformed)?;
    let limits = record.limits.changed(&resources);
    if let Some(cgroup) = &record.cgroup {
        claims::apply(&cgroup.dir(), &resources)?;
    }
    if let Some(why) = claims::without_effect(&resources, &record) {
        context.warn(&why);
    }
    size::take_host_only(&mut resources);
    let for_guest = serde_json::to_vec(&resources).map_err(malformed)?;
    let change = async |agent: &Agent| {
        let updated = agent.update(&id, for_guest.clone()).await;
        updated.map_err(|error| OciError::Agent("update the container", error))
    };
    let pod = PodDir::at(record.pod.clone());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(OciError::host("start the event loop"))?;
    let is_all = runtime.block_on(async {
        let agent = pods::connect(&pod).await?;
        let vm = Vm::lock(&pod)?;
        vm.change(&agent, &id, (record.limits, limits), async || {
            change(&agent).await
        })
        .await
    })?;
    if !is_all {
        context.warn("the VM can't be as large as these limits: they hold, but it has less");
    }
    record.limits = limits;
    held.write(&record)
}

fn read(path: &Path) -> Result<Value, OciError> {
    let mut text = String::new();
    let read = match path.to_str() {
        Some("-") => std::io::stdin().read_to_string(&mut text).map(drop),
        _ => fs::read_to_string(path).map(|content| text = content),
    };
    read.map_err(OciError::host(format!("read {}", path.display())))?;
    let json = |source| OciError::Json {
        path: path.to_owned(),
        source,
    };
    serde_json::from_str(&text).map_err(json)
}

fn of_options(args: &UpdateArgs) -> Result<Value, OciError> {
    let impossible = [
        ("--cpu-rt-period", args.cpu_rt_period.is_some()),
        ("--cpu-rt-runtime", args.cpu_rt_runtime.is_some()),
        ("--l3-cache-schema", args.l3_cache_schema.is_some()),
        ("--mem-bw-schema", args.mem_bw_schema.is_some()),
    ];
    if let Some((name, _)) = impossible.iter().find(|(_, given)| *given) {
        return Err(OciError::Refused(format!(
            "{name}: a guest has no such limit"
        )));
    }
    let mut cpu = Map::new();
    let mut set = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            cpu.insert(name.into(), value);
        }
    };
    set("period", args.cpu_period.map(Value::from));
    set("quota", args.cpu_quota.map(Value::from));
    set("burst", args.cpu_burst.map(Value::from));
    set("shares", args.cpu_share.map(Value::from));
    set("idle", args.cpu_idle.map(Value::from));
    set("cpus", args.cpuset_cpus.clone().map(Value::from));
    set("mems", args.cpuset_mems.clone().map(Value::from));
    let mut memory = Map::new();
    let sizes = [
        ("limit", &args.memory),
        ("reservation", &args.memory_reservation),
        ("swap", &args.memory_swap),
    ];
    for (name, size) in sizes {
        if let Some(size) = size {
            memory.insert(name.into(), bytes(size)?.into());
        }
    }
    let mut resources = json!({});
    for (name, fields) in [("cpu", cpu), ("memory", memory)] {
        if !fields.is_empty() {
            resources[name] = Value::Object(fields);
        }
    }
    if let Some(limit) = args.pids_limit {
        resources["pids"] = json!({"limit": limit});
    }
    if let Some(weight) = args.blkio_weight {
        resources["blockIO"] = json!({"weight": weight});
    }
    Ok(resources)
}

/// Bytes, or with a suffix of 1024 (docker/go-units RAMInBytes); -1 is no limit.
fn bytes(text: &str) -> Result<i64, OciError> {
    let bad = || OciError::Refused(format!("invalid size {text:?}"));
    if text == "-1" {
        return Ok(-1);
    }
    let lower = text.to_ascii_lowercase();
    let number = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let exponent = match lower.get(number.len()..).unwrap_or_default() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(bad()),
    };
    let number: i64 = number.trim().parse().map_err(|_| bad())?;
    number
        .checked_mul(1 << exponent)
        .filter(|bytes| *bytes >= 0)
        .ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_given_is_changed() {
        let args = UpdateArgs {
            memory: Some("32M".into()),
            memory_swap: Some("-1".into()),
            cpu_quota: Some(-1),
            pids_limit: Some(10),
            ..Default::default()
        };
        let expected = json!({
            "cpu": {"quota": -1},
            "memory": {"limit": 33_554_432, "swap": -1},
            "pids": {"limit": 10},
        });
        assert_eq!(of_options(&args).unwrap(), expected);
    }

    #[test]
    fn sizes_have_suffixes() {
        assert_eq!(bytes("1g").unwrap(), 1 << 30);
        assert_eq!(bytes("64KiB").unwrap(), 65536);
        for text in ["", "x", "1x", "-5", "99999999999g"] {
            assert!(bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_a_guest_has_not_is_refused() {
        let args = UpdateArgs {
            cpu_rt_period: Some(1),
            ..Default::default()
        };
        let message = of_options(&args).unwrap_err().to_string();
        assert!(message.contains("--cpu-rt-period"), "{message}");
    }
}
