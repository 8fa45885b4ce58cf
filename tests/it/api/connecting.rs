//! How vendors are connected to: authorities and certificates of one's own, and proxies.

use std::{fs, time::Duration};

use mock_vendors::{Answer, MockVendors};

use crate::{
    on_every_backend,
    support::{
        Backend, TestApp,
        ways::{Way, certificate},
    },
};

on_every_backend!(
    a_vendor_whose_authority_is_named_is_trusted_and_another_is_said_to_be_unknown,
    a_vendor_that_wants_a_certificate_gets_ours_and_the_next_one_when_its_files_change,
    a_vendor_that_wants_a_certificate_and_gets_none_fails_with_the_keys_to_set,
    connections_opened_with_one_certificate_are_not_used_with_another,
    a_certificate_is_not_shown_where_credentials_do_not_go,
    tokens_are_asked_for_with_the_vendors_certificate_and_through_its_proxy,
    https_goes_through_a_proxy_by_connect_and_http_by_absolute_urls,
    a_proxy_that_refuses_is_named_with_its_status_and_without_its_password,
);

const SECOND: Duration = Duration::from_secs(1);

async fn vendors() -> MockVendors {
    MockVendors::start("127.0.0.1:0").await.expect("a port")
}

/// A vendor with these keys, in which `CERTS` stands for the folder of the certificates.
fn vendor(name: &str, origin: &str, more: &str) -> String {
    let more = more.replace("CERTS", certificate("").to_str().expect("text").trim_end_matches('/'));
    format!(
        "[vendors.{name}]\nkind = \"sync\"\nurl = \"{origin}/sync/{name}\"\nlimits = []\nretry = {{ first = \"1s\" }}\n{more}\n"
    )
}

fn https(way: &Way) -> String {
    format!("https://{}", way.address)
}

/// Why a job is not done yet.
async fn why(app: &TestApp, id: &str) -> String {
    let job = app.find(id).await;
    job["last_error"]["message"].as_str().unwrap_or_else(|| panic!("no last_error in {job}")).to_owned()
}

async fn a_vendor_whose_authority_is_named_is_trusted_and_another_is_said_to_be_unknown(backend: Backend) {
    let vendors = vendors().await;
    let way = Way::tls(vendors.address()).await;
    let known = vendor("known", &https(&way), "tls = { ca = \"CERTS/authority.pem\" }");
    let text = format!("{known}{}", vendor("stranger", &https(&way), "tls = { ca = \"CERTS/stranger.pem\" }"));
    let mut app = TestApp::with(backend, &(text + &vendor("usual", &https(&way), ""))).await;
    let mut ids = Vec::new();
    for name in ["known", "stranger", "usual"] {
        ids.push(app.submit(name, "1").await);
    }
    app.run_for(SECOND / 2).await;
    assert_eq!(app.status(&ids[0]).await, "complete");
    for id in &ids[1..] {
        let why = why(&app, id).await;
        assert!(why.contains("could not be reached") && why.contains("name its authority in tls.ca"), "{why}");
    }
    assert_eq!((vendors.count("known"), vendors.count("stranger"), vendors.count("usual")), (1, 0, 0));
}

async fn a_vendor_that_wants_a_certificate_gets_ours_and_the_next_one_when_its_files_change(backend: Backend) {
    let vendors = vendors().await;
    let way = Way::mutual_tls(vendors.address()).await;
    let folder = tempfile::tempdir().expect("a folder");
    let put = |from: &str, to: &str| fs::copy(certificate(from), folder.path().join(to)).map(drop).expect("copied");
    put("client-1.pem", "own.pem");
    put("client-1.key", "own.key");
    let own = |name: &str| folder.path().join(name).display().to_string();
    let tls = format!(
        "tls = {{ ca = \"CERTS/authority.pem\", cert = \"{}\", key = \"{}\" }}",
        own("own.pem"),
        own("own.key")
    );
    let mut app = TestApp::with(backend, &vendor("one", &https(&way), &tls)).await;
    let mut shown = Vec::new();
    // A certificate whose key is still to come leaves the pair before it in use.
    for replaced in [None, Some("own.pem"), Some("own.key")] {
        if let Some(file) = replaced {
            put(&file.replace("own", "client-2"), file);
            app.live_for(2 * SECOND).await;
        }
        let id = app.submit("one", "1").await;
        app.run_for(SECOND / 2).await;
        assert_eq!(app.status(&id).await, "complete");
        shown.extend(way.seen().last().cloned());
    }
    assert_eq!(shown, ["client-1", "client-1", "client-2"]);
    assert_eq!(vendors.count("one"), 3);
}

async fn a_vendor_that_wants_a_certificate_and_gets_none_fails_with_the_keys_to_set(backend: Backend) {
    let vendors = vendors().await;
    let way = Way::mutual_tls(vendors.address()).await;
    let text = vendor("one", &https(&way), "tls = { ca = \"CERTS/authority.pem\" }\nat_most_once = true");
    let mut app = TestApp::with(backend, &text).await;
    let id = app.submit("one", "1").await;
    app.run_for(SECOND / 2).await;
    let why = why(&app, &id).await;
    assert!(why.contains("could not be reached") && why.contains("set tls.cert and tls.key"), "{why}");
    assert_eq!((vendors.count("one"), &*app.status(&id).await), (0, "pending"), "no call was made: it is tried again");
}

async fn connections_opened_with_one_certificate_are_not_used_with_another(backend: Backend) {
    let vendors = vendors().await;
    let way = Way::mutual_tls(vendors.address()).await;
    let tls = |n| {
        format!(
            "tls = {{ ca = \"CERTS/authority.pem\", cert = \"CERTS/client-{n}.pem\", key = \"CERTS/client-{n}.key\" }}"
        )
    };
    let text = vendor("one", &https(&way), &tls(1)) + &vendor("two", &https(&way), &tls(2));
    let mut app = TestApp::with(backend, &text).await;
    for (name, certificate) in [("one", "client-1"), ("two", "client-2")] {
        let id = app.submit(name, "1").await;
        app.run_for(SECOND / 2).await;
        assert_eq!(app.status(&id).await, "complete");
        assert_eq!(way.seen().last().map(String::as_str), Some(certificate));
    }
}

async fn a_certificate_is_not_shown_where_credentials_do_not_go(backend: Backend) {
    let vendors = vendors().await;
    let (own, other) = (Way::tls(vendors.address()).await, Way::tls(vendors.address()).await);
    let more = format!(
        r#"tls = {{ ca = "CERTS/authority.pem", cert = "CERTS/client-1.pem", key = "CERTS/client-1.key" }}
polling = {{ ticket = "/id", url = "{}/polling/one/{{{{ ticket | path }}}}", every = "1s", done = {{ at = "/state", is = ["done"] }} }}"#,
        https(&other)
    );
    let text = vendor("one", &https(&own), &more).replace("\"sync\"", "\"polling\"").replace("/sync/", "/polling/");
    let mut app = TestApp::with(backend, &text).await;
    let id = app.submit("one", "1").await;
    app.run_for(10 * SECOND).await;
    assert_eq!(app.status(&id).await, "complete");
    let (own, other) = (own.seen(), other.seen());
    assert!(!own.is_empty() && own.iter().all(|shown| shown == "client-1"), "{own:?}");
    assert!(!other.is_empty() && other.iter().all(String::is_empty), "{other:?}");
}

async fn tokens_are_asked_for_with_the_vendors_certificate_and_through_its_proxy(backend: Backend) {
    let vendors = vendors().await;
    vendors.accept_only("one", &["Bearer t"]);
    vendors.script("idp", vec![Answer::json(200, r#"{"access_token": "t", "token_type": "Bearer"}"#)]);
    let (way, proxy) = (Way::mutual_tls(vendors.address()).await, Way::proxy().await);
    let more = format!(
        r#"tls = {{ ca = "CERTS/authority.pem", cert = "CERTS/client-1.pem", key = "CERTS/client-1.key" }}
proxy = "http://{}"
auth = {{ kind = "oauth2", token_url = "{}/sync/idp", client_id = "us", client_secret = "s3cret" }}"#,
        proxy.address,
        https(&way)
    );
    let mut app = TestApp::with(backend, &vendor("one", &https(&way), &more)).await;
    let id = app.submit("one", "1").await;
    app.run_for(SECOND / 2).await;
    assert_eq!(app.status(&id).await, "complete");
    assert_eq!((vendors.count("idp"), vendors.count("one")), (1, 1));
    assert!(way.seen().iter().all(|shown| shown == "client-1"), "{:?}", way.seen());
    assert!(proxy.seen().iter().all(|head| head.starts_with("CONNECT ")), "{:?}", proxy.seen());
}

async fn https_goes_through_a_proxy_by_connect_and_http_by_absolute_urls(backend: Backend) {
    let vendors = vendors().await;
    let (way, proxy) = (Way::tls(vendors.address()).await, Way::proxy().await);
    let more = format!("proxy = \"http://us%40er:s3cret@{}\"\n", proxy.address);
    let text = vendor("secure", &https(&way), &format!("{more}tls = {{ ca = \"CERTS/authority.pem\" }}"))
        + &vendor("plain", &vendors.url(), &more);
    let mut app = TestApp::with(backend, &text).await;
    let login = "proxy-authorization: Basic dXNAZXI6czNjcmV0\r\n";
    for (name, first_line) in [
        ("secure", format!("CONNECT {} HTTP/1.1\r\n", way.address)),
        ("plain", format!("POST {}/sync/plain HTTP/1.1\r\n", vendors.url())),
    ] {
        for payload in ["1", "2"] {
            let id = app.submit(name, payload).await;
            app.run_for(SECOND / 2).await;
            assert_eq!(app.status(&id).await, "complete");
        }
        let heads = proxy.seen();
        let head = heads.iter().find(|head| head.starts_with(&first_line)).unwrap_or_else(|| panic!("{heads:?}"));
        assert!(head.to_ascii_lowercase().contains(&login.to_ascii_lowercase()), "{head}");
    }
    let arrival = vendors.arrivals("secure").remove(0);
    assert_eq!((arrival.header("proxy-authorization"), &*arrival.path_and_query), (None, "/sync/secure"));
    assert_eq!(arrival.header("host"), Some(&*way.address.to_string()));
    assert_eq!((vendors.count("secure"), vendors.count("plain")), (2, 2));
}

async fn a_proxy_that_refuses_is_named_with_its_status_and_without_its_password(backend: Backend) {
    for (status, origin) in [(407, "https://127.0.0.1:1"), (502, "https://127.0.0.1:1"), (407, "http://127.0.0.1:1")] {
        let proxy = Way::refusing_proxy(status).await;
        let more = format!("at_most_once = true\nproxy = \"http://user:canary-51b0@{}\"", proxy.address);
        let mut app = TestApp::with(backend, &vendor("one", origin, &more)).await;
        let id = app.submit("one", "1").await;
        app.run_for(SECOND / 2).await;
        let why = why(&app, &id).await;
        assert!(why.contains(&format!("could not be reached: the proxy {} answered {status}", proxy.address)), "{why}");
        assert_eq!(why.contains("user and the password"), status == 407, "{why}");
        assert_eq!(app.status(&id).await, "pending", "no call was made: it is tried again");
        for path in [format!("/jobs/{id}"), format!("/jobs/{id}/attempts"), "/vendors".into(), "/metrics".into()] {
            let text = app.get(&path).await.text;
            assert!(!text.contains("canary-51b0"), "{path}: {text}");
        }
        assert!(!proxy.seen().is_empty());
    }
}
