//! SIGHUP: secrets in files are read again, and the process goes on.

use std::{fs, time::Duration};

use crate::failure::{World, wait_until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sighup_reads_secrets_again_and_never_ends_the_process() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("token");
    fs::write(&path, "old").expect("written");
    let world = World::new(&format!(
        "[vendors.bank]\nkind = \"sync\"\nurl = \"VENDORS/sync/bank\"\nlimits = []\nauth = {{ kind = \"bearer\", token = \"${{file:{}}}\" }}\n",
        path.display()
    ))
    .await;
    let process = world.start().await;
    fs::write(&path, "new").expect("written");
    for _ in 0..3 {
        process.signal("HUP");
    }
    let has_read = async || process.log().contains("a secret has changed").then_some(());
    wait_until("the new secret", Duration::from_secs(30), has_read).await;
    let id = process.submit("bank", "1").await.unwrap_or_else(|| panic!("not accepted: {}", process.log()));
    assert_eq!(process.ended(&id).await["status"], "complete");
    assert_eq!(world.vendors.arrivals("bank")[0].header("authorization"), Some("Bearer new"));
    let log = process.log();
    assert!(log.contains("SIGHUP") && !log.contains("Bearer"), "{log}");
}
