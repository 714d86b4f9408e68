use super::*;

#[test]
fn the_newest_packaged_version_comes_first() {
    let dirs = ["9", "17", "notes", "15"].map(|name| Path::new("/usr/lib/postgresql").join(name).join("bin"));
    let sorted = newest_first(dirs.into());
    let names: Vec<_> = sorted.iter().map(|dir| dir.parent().unwrap().file_name().unwrap()).collect();
    assert_eq!(names, ["17", "15", "9", "notes"]);
}

#[test]
fn a_user_is_found_by_its_whole_name() {
    let users = "postgres2:x:1:2::/:/bin/sh\npostgres:x:105:109:,,,:/var/lib/postgresql:/bin/bash\n";
    let user = User::named("postgres", users).unwrap();
    assert_eq!((user.uid, user.gid), (105, 109));
    assert!(User::named("nobody", users).is_none());
}

#[test]
fn a_directory_without_the_programs_is_refused_by_name() {
    let error = find_binaries(Some(Path::new("/"))).unwrap_err();
    assert!(error.to_string().contains("--pg-bin"), "{error}");
}

async fn client(url: &str) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

#[tokio::test]
async fn a_server_survives_a_kill_and_leaves_nothing_behind_when_it_is_stopped() {
    let mut server = Scratch::start(Options::default()).await.unwrap();
    let (home, pid, url) = (server.launch.home.path().to_owned(), server.pid(), server.url());
    client(&url).await.unwrap().batch_execute("CREATE TABLE kept AS SELECT 42 AS answer").await.unwrap();

    server.kill();
    assert!(client(&url).await.is_err(), "nobody listens");
    server.restart().await.unwrap();
    assert_ne!(server.pid(), pid);
    let row = client(&url).await.unwrap().query_one("SELECT answer FROM kept", &[]).await.unwrap();
    assert_eq!(row.get::<_, i32>(0), 42, "the data outlived the kill");

    server.stop().await.unwrap();
    assert!(client(&url).await.is_err() && !home.exists());
}

#[tokio::test]
async fn with_a_password_only_its_holder_gets_in_and_dropping_it_removes_all() {
    let options = Options {
        password: Some("s3cret".into()),
        settings: vec![("max_connections".into(), "17".into())],
        files: vec![("extra.conf".into(), b"# nothing".to_vec())],
        ..Options::default()
    };
    let server = Scratch::start(options).await.unwrap();
    let row = client(&server.url()).await.unwrap().query_one("SHOW max_connections", &[]).await.unwrap();
    assert_eq!(row.get::<_, &str>(0), "17", "a later setting wins");
    let wrong = client(&server.url().replace("s3cret", "guess")).await.unwrap_err();
    assert_eq!(wrong.code(), Some(&SqlState::INVALID_PASSWORD));
    let home = server.launch.home.path().to_owned();
    assert!(home.join("data/extra.conf").exists());
    drop(server);
    assert!(!home.exists());
}

#[tokio::test]
async fn a_server_that_does_not_start_says_why() {
    let options = Options { settings: vec![("no_such_setting".into(), "1".into())], ..Options::default() };
    let error = Scratch::start(options).await.unwrap_err();
    assert!(error.to_string().contains("no_such_setting"), "{error}");
}
