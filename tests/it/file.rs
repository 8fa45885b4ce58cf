//! The one file of the embedded store, under the real binary: who may open it, what happens when it goes, and what it costs in memory.

use std::{fs, os::unix::fs::symlink, time::Duration};

use serde_json::json;

use crate::failure::{LONG, Process, SYNC_AND_WEBHOOK, World, free_address, wait_until};

/// A vendor that nobody calls while the test runs.
const SLOW: &str = r#"
[vendors.sync]
kind = "sync"
url = "VENDORS/sync"
limits = [{ calls = 1, per = "1d", shape = "window" }]
"#;

impl Process {
    /// Resident memory in MiB, as Linux counts it.
    fn resident_mib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id())).expect("a running process on Linux");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its size");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") / 1024
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_process_is_refused_whatever_it_calls_the_file() {
    let world = World::new(SYNC_AND_WEBHOOK).await;
    let folder = world.folder.path();
    // A symbolic link to a file that does not exist yet is a name for it too.
    symlink(folder.join("jobs.db"), folder.join("symbolic.db")).expect("a link");
    let first = world.start().await;
    fs::hard_link(folder.join("jobs.db"), folder.join("hard.db")).expect("a link");
    fs::create_dir(folder.join("folder")).expect("a folder");
    symlink(folder, folder.join("folder/up")).expect("a link");
    for name in ["symbolic.db", "hard.db", "folder/up/jobs.db"] {
        world.write_config_for(name, "second.toml", free_address(), SYNC_AND_WEBHOOK);
        let mut second = world.spawn("second.toml");
        assert_eq!(second.exits(LONG).await.code(), Some(1), "{name}");
        let log = second.log();
        assert!(log.contains("in use by another process") && log.contains(name), "{name}: {log}");
    }
    let id = first.submit("sync", "1").await.expect("acknowledged");
    assert_eq!(first.ended(&id).await["status"], "complete");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_is_deleted_ends_the_process_within_five_seconds() {
    let world = World::new(SLOW).await;
    let process = world.start().await;
    process.submit("sync", "1").await.expect("acknowledged");
    for name in ["jobs.db", "jobs.db-wal", "jobs.db-shm"] {
        fs::remove_file(world.folder.path().join(name)).expect("it was there");
    }
    ends_because_the_file_is_gone(process).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_that_is_swapped_ends_the_process_and_the_old_one_has_all_that_was_accepted() {
    let world = World::new(SLOW).await;
    let folder = world.folder.path();
    fs::create_dir(folder.join("data")).expect("a folder");
    world.write_config_for("data/jobs.db", "config.toml", world.address(), SLOW);
    let process = world.start().await;
    let id = process.submit("sync", "1").await.expect("acknowledged");
    fs::rename(folder.join("data"), folder.join("old")).expect("moved");
    fs::create_dir(folder.join("data")).expect("a folder");
    ends_because_the_file_is_gone(process).await;
    fs::remove_dir_all(folder.join("data")).expect("removed");
    fs::rename(folder.join("old"), folder.join("data")).expect("moved back");
    let process = world.start().await;
    assert_eq!(process.json(&format!("/jobs/{id}")).await["request_id"], json!(id));
}

async fn ends_because_the_file_is_gone(mut process: Process) {
    // A little more than the five seconds: a busy machine looks late.
    assert_eq!(process.exits(Duration::from_secs(8)).await.code(), Some(1), "{}", process.log());
    let log = process.log();
    assert!(log.contains("jobs.db is not the file that was opened"), "{log}");
    assert!(!log.contains("what was acknowledged is safe"), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiting_jobs_of_many_tenants_cost_no_memory_for_their_payloads() {
    const TENANTS: usize = 600;
    let world = World::new(SLOW).await;
    let process = world.start().await;
    let before = process.resident_mib();
    let payload = "x".repeat(200_000);
    for slice in 0..TENANTS / 5 {
        let job = |i| json!({"vendor": "sync", "tenant": format!("t{}", slice * 5 + i), "payload": payload});
        let batch: Vec<_> = (0..5).map(job).collect();
        let answer = process.send("POST", "/jobs/batch", json!(batch).to_string()).await.expect("an answer");
        assert_eq!(answer.0, 202);
    }
    let with_jobs = process.resident_mib();
    process.kill();
    let process = world.start().await;
    // One job is called, and all lanes have been read by the time the last tenant's can be told its place.
    wait_until("the lanes are read", LONG, async || {
        (process.json("/vendors/sync").await["waiting"] == TENANTS - 1).then_some(())
    })
    .await;
    let restarted = process.resident_mib();
    eprintln!("{before} MiB at first, {with_jobs} MiB with {TENANTS} jobs of 200 KB, {restarted} MiB after a restart");
    assert!(with_jobs < before + 80 && restarted < before + 80, "{before}, {with_jobs}, {restarted} MiB");
}
