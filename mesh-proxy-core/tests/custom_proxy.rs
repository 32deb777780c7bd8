//! The example of a custom proxy really works.

#[path = "../examples/custom_proxy.rs"]
#[expect(dead_code, reason = "its main is for people")]
mod custom_proxy;
mod support;

use support::*;

#[tokio::test]
async fn the_example_lets_only_the_password_through() {
    let app = App::echo().await;
    let proxy = custom_proxy::start("127.0.0.1:0".parse().unwrap(), app.address).unwrap();
    let mut client = Client::connect(proxy.handle().bound_addresses("front")[0]).await;
    let refused = client.get("/").await;
    assert_eq!((code(&refused), refused.1.as_str()), (401, "password?\n"));
    let passed = client.send("GET / HTTP/1.1\r\nhost: app\r\nx-password: open sesame\r\n\r\n").await;
    assert_eq!(code(&passed), 200);
    assert!(!passed.1.contains("x-password"), "{passed:?}");
}
