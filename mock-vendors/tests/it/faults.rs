//! Each fault does on the wire what its name says.

use std::io::{ErrorKind, Read};

use mock_vendors::{Answer, Fault};
use tokio::io::AsyncReadExt;
use tokio::time::timeout;

use crate::support::{ask, raw, sent, start};

#[tokio::test]
async fn reset_ends_the_connection_with_an_rst_and_no_answer() {
    let mock = start().await;
    let error = raw(&mock, "POST /sync/x?fault=reset").await.expect_err("no orderly end");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert_eq!(mock.count("x"), 1);
}

#[tokio::test]
async fn hang_keeps_the_connection_open_and_silent() {
    let mock = start().await;
    let mut stream = sent(&mock, "POST /sync/x?fault=hang", "", "{}").await;
    let silence = std::time::Duration::from_millis(100);
    assert!(timeout(silence, stream.read_u8()).await.is_err());
}

#[tokio::test]
async fn truncate_closes_before_the_announced_length() {
    let mock = start().await;
    let reply = ask(&mock, "POST /sync?fault=truncate", "{}").await;
    assert_eq!((reply.status, reply.header("content-length")), (200, Some("1000")));
    assert_eq!(reply.text(), r#"{"vendor":"cut"#);
}

#[tokio::test]
async fn a_body_can_be_compressed_late_or_cut() {
    let mock = start().await;
    let plain = ask(&mock, "POST /sync/a", "{}").await;
    let packed = ask(&mock, "POST /sync/b?gzip", "{}").await;
    assert_eq!((packed.status, packed.header("content-encoding")), (200, Some("gzip")));
    let mut unpacked = String::new();
    flate2::read::GzDecoder::new(&packed.body[..]).read_to_string(&mut unpacked).expect("gzip");
    assert_eq!(unpacked.replace("\"b\"", "\"a\""), plain.text());

    let cut = ask(&mock, "POST /sync/c?status=503&retry_after=9&body=0123456789&cut", "{}").await;
    assert_eq!((cut.status, cut.header("content-length"), cut.text()), (503, Some("10"), "01234"));
    assert_eq!(cut.header("retry-after"), Some("9"));

    let mut late = sent(&mock, "POST /sync/d?body_ms=60000", "", "{}").await;
    let mut head = [0; 12];
    late.read_exact(&mut head).await.expect("the head comes at once");
    assert_eq!(&head, b"HTTP/1.1 200");
}

#[tokio::test]
async fn badhttp_is_not_http() {
    let mock = start().await;
    let bytes = raw(&mock, "POST /sync?fault=badhttp").await.expect("an orderly end");
    assert!(!bytes.is_empty() && !bytes.starts_with(b"HTTP/"));
}

#[tokio::test]
async fn bodies_that_no_parser_likes() {
    let mock = start().await;
    for (fault, body) in [("garbage", b"{\"not json".as_ref()), ("notutf8", b"\xff\xfe"), ("empty", b"")] {
        let reply = ask(&mock, &format!("POST /sync?fault={fault}"), "{}").await;
        assert_eq!((reply.status, reply.header("content-type")), (200, Some("application/json")), "{fault}");
        assert_eq!(reply.body, body, "{fault}");
    }
    let reply = ask(&mock, "POST /sync?fault=text", "{}").await;
    assert_eq!((reply.status, reply.header("content-type"), reply.text()), (200, Some("text/plain"), "hello"));
    let reply = ask(&mock, "POST /sync?fault=redirect", "{}").await;
    assert_eq!((reply.status, reply.header("location")), (302, Some("/sync/redirected")));
}

#[tokio::test]
async fn deep_is_valid_json_that_overflows_careless_parsers() {
    let mock = start().await;
    let reply = ask(&mock, "POST /sync?fault=deep", "{}").await;
    assert_eq!(reply.text().matches('[').count(), 100_000);
    assert_eq!(reply.body.len(), 200_000);
}

#[tokio::test]
async fn big_is_one_json_string_of_exactly_that_size() {
    let mock = start().await;
    for size in [2, 65_536, 65_537, 3_000_000] {
        let reply = ask(&mock, &format!("POST /sync?fault=big&size={size}"), "{}").await;
        assert_eq!(reply.header("content-length"), Some(size.to_string().as_str()));
        assert_eq!(reply.json().as_str().map(str::len), Some(size - 2));
    }
}

#[tokio::test]
async fn a_fault_can_be_scripted_on_every_kind_of_call() {
    let mock = start().await;
    for line in ["POST /sync/x", "POST /async/x", "POST /polling/x", "GET /polling/x/x-1"] {
        mock.script("x", vec![Answer::fault(Fault::Reset)]);
        assert!(raw(&mock, line).await.is_err(), "{line}");
    }
    mock.script("x", vec![Answer::hang()]);
    let mut stream = sent(&mock, "POST /sync/x", "", "{}").await;
    while mock.count("x") < 5 {
        tokio::task::yield_now().await;
    }
    mock.stop().await;
    assert!(matches!(stream.read_u8().await, Err(error) if error.kind() == ErrorKind::UnexpectedEof));
}

#[tokio::test]
async fn a_fault_takes_no_work_unless_it_was_accepted() {
    let mock = start().await;
    assert!(raw(&mock, "POST /polling/x?fault=reset").await.is_err());
    assert_eq!(ask(&mock, "GET /polling/x/x-1", "").await.status, 404);
    assert!(raw(&mock, "POST /polling/x?fault=reset&accepted").await.is_err());
    assert_eq!(ask(&mock, "GET /polling/x/x-1", "").await.status, 200);
}
