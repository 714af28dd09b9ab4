//! `events`: what a container uses, once or again and again, and when it runs out of memory (runc's types/events.go).

use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};
use vmbox_protocol::agent::StatsResponse;

use super::{Context, args::EventsArgs, error::OciError, list, pods, record::Status, store};
use crate::{
    guest::{Agent, AgentError},
    pod::{ContainerId, place::PodDir},
};

/// Prints events, a line each, until the container has stopped.
///
/// # Errors
/// It does not run.
pub fn events(context: &Context, args: &EventsArgs) -> Result<(), OciError> {
    let record = store::look_up(&context.root, &args.id)?;
    if record.status() == Status::Stopped {
        return Err(OciError::Refused(format!(
            "container with id {} is not running",
            args.id
        )));
    }
    let id = store::parse_id(&args.id)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(OciError::host("start the event loop"))?;
    runtime.block_on(async {
        let agent = pods::connect(&PodDir::at(record.pod.clone())).await?;
        if args.stats {
            let stats = agent.stats(&id).await;
            let stats = stats.map_err(|error| OciError::Agent("read the statistics", error))?;
            return emit("stats", &id, Some(&stats));
        }
        follow(&agent, &id, args.interval).await
    })
}

/// Both end with the container: the agent then knows none of that name, or is gone.
async fn follow(agent: &Agent, id: &ContainerId, interval: Duration) -> Result<(), OciError> {
    let mut ticks = tokio::time::interval(interval);
    // The first tick is at once, runc's after an interval.
    ticks.tick().await;
    let mut seen = match agent.stats(id).await {
        Ok(stats) => stats.oom_kills,
        Err(_) => return Ok(()),
    };
    loop {
        let ooms = agent.await_oom(id, seen);
        tokio::select! {
            answer = ooms => match answer {
                Ok(answer) => {
                    if answer.oom_kills > seen {
                        emit("oom", id, None)?;
                    }
                    seen = answer.oom_kills;
                    if answer.stopped {
                        return Ok(());
                    }
                }
                Err(AgentError::Gone) => return Ok(()),
                Err(error) => return Err(OciError::Agent("wait for events", error)),
            },
            _ = ticks.tick() => match agent.stats(id).await {
                Ok(stats) => emit("stats", id, Some(&stats))?,
                Err(_) => return Ok(()),
            },
        }
    }
}

/// runc's types.Event, in its order.
#[derive(Serialize)]
struct Event<'a> {
    r#type: &'a str,
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Value>,
}

fn emit(kind: &str, id: &ContainerId, stats: Option<&StatsResponse>) -> Result<(), OciError> {
    list::line(&Event {
        r#type: kind,
        id: id.as_str(),
        data: stats.map(data),
    })
}

fn data(stats: &StatsResponse) -> Value {
    let memory = |name: &str| stats.memory_stat.get(name).copied().unwrap_or(0);
    let entries = |of: fn(&vmbox_protocol::agent::IoStats) -> (u64, u64)| -> Vec<Value> {
        let devices = stats.io.iter();
        devices
            .flat_map(|device| {
                let (read, write) = of(device);
                [("Read", read), ("Write", write)].map(|(op, value)| {
                    json!({"major": device.major, "minor": device.minor, "op": op, "value": value})
                })
            })
            .collect()
    };
    let hugetlb: serde_json::Map<String, Value> = stats
        .hugetlb
        .iter()
        .map(|size| {
            let usage = json!({"usage": size.bytes, "max": size.bytes, "failcnt": size.limit_hits});
            (size.page_size.clone(), usage)
        })
        .collect();
    json!({
        "cpu": {
            "usage": {
                "total": ns(stats.cpu_usage_us),
                "kernel": ns(stats.cpu_system_us),
                "user": ns(stats.cpu_user_us),
            },
            "throttling": {
                "periods": stats.cpu_periods,
                "throttledPeriods": stats.cpu_throttled_periods,
                "throttledTime": ns(stats.cpu_throttled_us),
            },
        },
        "cpuset": {},
        "memory": {
            "cache": memory("file"),
            "usage": {
                "limit": stats.memory_limit_bytes,
                "usage": stats.memory_bytes,
                "max": stats.memory_peak_bytes,
                "failcnt": stats.memory_limit_hits,
            },
            "swap": {
                "limit": stats.swap_limit_bytes,
                "usage": stats.swap_bytes,
                "max": stats.swap_peak_bytes,
                "failcnt": stats.swap_limit_hits,
            },
            "kernel": {"failcnt": 0},
            "kernelTCP": {"failcnt": 0},
            "raw": stats.memory_stat,
        },
        "pids": {
            "current": stats.pids,
            // 0 is no limit.
            "limit": match stats.pids_limit { u64::MAX => 0, limit => limit },
        },
        "blkio": {
            "ioServiceBytesRecursive": entries(|io| (io.read_bytes, io.write_bytes)),
            "ioServicedRecursive": entries(|io| (io.read_ios, io.write_ios)),
        },
        "hugetlb": hugetlb,
        "intel_rdt": {},
        "network_interfaces": null,
    })
}

fn ns(us: u64) -> u64 {
    us.saturating_mul(1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_runcs_units() {
        let stats = StatsResponse {
            cpu_usage_us: 3,
            pids: 2,
            pids_limit: u64::MAX,
            memory_bytes: 4096,
            ..Default::default()
        };
        let data = data(&stats);
        assert_eq!(data["cpu"]["usage"]["total"], 3000);
        assert_eq!(data["pids"], json!({"current": 2, "limit": 0}));
        assert_eq!(data["memory"]["usage"]["usage"], 4096);
    }
}
