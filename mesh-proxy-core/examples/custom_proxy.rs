//! A proxy of one's own in one file: a listener, a filter, an upstream; no xDS.
//!
//! `cargo run -p mesh-proxy-core --example custom_proxy -- 127.0.0.1:8080 127.0.0.1:9080`

use std::{net::SocketAddr, sync::Arc, time::Duration};

use mesh_proxy_core::config::*;
use mesh_proxy_core::filter::{Flow, HttpFilter, HttpFilterFactory, LocalReply, RequestContext};
use mesh_proxy_core::{ConfigError, Proxy};

/// Lets only requests with the right password through.
#[derive(Debug)]
struct Password(String);

impl HttpFilter for Password {
    fn on_request(&self, _cx: &mut RequestContext, head: &mut http::request::Parts) -> Flow {
        match head.headers.remove("x-password") {
            Some(password) if password.as_bytes() == self.0.as_bytes() => Flow::Continue,
            _ => Flow::Reply(Box::new(LocalReply::new(
                http::StatusCode::UNAUTHORIZED,
                "password?\n",
                "no_password",
            ))),
        }
    }
}

#[derive(Debug)]
struct PasswordFactory;

impl HttpFilterFactory for PasswordFactory {
    fn name(&self) -> &str {
        "password"
    }

    fn create(&self, config: &CustomFilter) -> Result<Arc<dyn HttpFilter>, ConfigError> {
        Ok(Arc::new(Password(String::from_utf8_lossy(&config.config).into_owned())))
    }
}

fn main() -> anyhow::Result<()> {
    let mut addresses = std::env::args().skip(1).map(|text| text.parse::<SocketAddr>());
    let listen = addresses.next().unwrap_or(Ok(([127, 0, 0, 1], 8080).into()))?;
    let upstream = addresses.next().unwrap_or(Ok(([127, 0, 0, 1], 9080).into()))?;
    let hosts = vec![VirtualHost {
        domains: vec!["*".into()],
        routes: vec![Arc::new(Route::forward("/", "app"))],
        ..VirtualHost::default()
    }];
    let routes =
        RouteConfiguration { name: "all".into(), virtual_hosts: hosts, ..RouteConfiguration::default() };
    let mut manager = HttpConnectionManager::new("custom", RouteSource::Inline(Arc::new(routes)));
    let password = CustomFilter { factory: "password".into(), config: "open sesame".into() };
    manager.filters.insert(0, HttpFilterConfig::new("password", HttpFilterKind::Custom(password)));
    let mut listener = Listener::new("front", listen);
    listener.filter_chains = vec![FilterChain::new("http", vec![NetworkFilter::Http(Arc::new(manager))])];
    let proxy = Proxy::builder().http_filter(Arc::new(PasswordFactory)).build()?;
    let endpoints = LoadAssignment::new("app", [upstream]);
    proxy.handle().apply_cluster(Cluster::new("app", Discovery::Static(Arc::new(endpoints))))?;
    proxy.handle().apply_listener(listener)?;
    println!("{}", proxy.handle().bound_addresses("front")[0]);
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?; // Until standard input is closed.
    tokio::runtime::Runtime::new()?.block_on(proxy.handle().shutdown(Duration::from_secs(5)));
    Ok(())
}
