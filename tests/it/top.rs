//! `pgleash top`, as far as it needs no terminal.

use std::process::{Command, Output};

use crate::support::server::free_port;
use crate::support::{Leash, Server, eventually_or, finish};

async fn once(address: String) -> Output {
    let run = move || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pgleash"));
        command.args(["top", "--once", &address]).output().unwrap()
    };
    tokio::task::spawn_blocking(run).await.unwrap()
}

#[tokio::test]
async fn a_screenful_shows_who_holds_what() {
    let database = Server::shared().database().await;
    let leash = Leash::on(&database).start().await;
    let mut holder = leash.endpoint().raw("report-job").await;
    holder.query("BEGIN").await;
    let address = format!("127.0.0.1:{}", leash.admin_port());
    let shown = eventually_or("the holder is shown", async || {
        let ran = once(address.clone()).await;
        let text = String::from_utf8(ran.stdout).unwrap();
        if text.contains("idle_in_transaction") { Ok(text) } else { Err(text) }
    })
    .await;
    let row = shown.lines().find(|line| line.contains("report-job")).unwrap();
    assert!(row.contains("; suspect in "), "{shown}");
    assert!(shown.contains("enforcing") && shown.contains(&format!("app@{}", database.name)), "{shown}");
    holder.query("ROLLBACK").await;
    holder.close().await;
    finish(leash, &database).await;
}

#[tokio::test]
async fn nobody_there_is_an_error_that_says_so() {
    let ran = once(format!("127.0.0.1:{}", free_port())).await;
    assert_eq!(ran.status.code(), Some(1));
    let said = String::from_utf8(ran.stderr).unwrap();
    assert!(said.contains("refused"), "{said}");
}
