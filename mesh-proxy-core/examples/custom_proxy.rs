//! A proxy of one's own in one file: a listener, a filter, an upstream; no xDS.
//! `cargo run -p mesh-proxy-core --example custom_proxy -- 127.0.0.1:8080 127.0.0.1:9080`

use http::{StatusCode, request::Parts};
use mesh_proxy_core::config::*;
use mesh_proxy_core::filter::{Flow, HttpFilter, HttpFilterFactory, LocalReply, RequestContext};
use mesh_proxy_core::{ConfigError, Proxy};
use std::{net::SocketAddr, sync::Arc};

/// Lets only requests with the right password through.
#[derive(Debug)]
struct Password(String);

impl HttpFilter for Password {
    fn on_request(&self, _cx: &mut RequestContext, head: &mut Parts) -> Flow {
        match head.headers.remove("x-password") {
            Some(password) if password.as_bytes() == self.0.as_bytes() => Flow::Continue,
            _ => {
                Flow::Reply(Box::new(LocalReply::new(StatusCode::UNAUTHORIZED, "password?\n", "no_password")))
            }
        }
    }
}

#[derive(Debug)]
struct PasswordFactory;

impl HttpFilterFactory for PasswordFactory {
    fn name(&self) -> &str {
        "password"
    }

    fn create(&self, custom: &CustomFilter) -> Result<Arc<dyn HttpFilter>, ConfigError> {
        Ok(Arc::new(Password(String::from_utf8_lossy(&custom.config).into_owned())))
    }
}

pub(crate) fn start(listen: SocketAddr, upstream: SocketAddr) -> anyhow::Result<Proxy> {
    let mut host = VirtualHost { domains: vec!["*".into()], ..VirtualHost::default() };
    host.routes.push(Arc::new(Route::forward("/", "app")));
    let routes = RouteConfiguration { virtual_hosts: vec![host], ..RouteConfiguration::default() };
    let mut manager = HttpConnectionManager::new("custom", RouteSource::Inline(Arc::new(routes)));
    let password = CustomFilter { factory: "password".into(), config: "open sesame".into() };
    manager.filters.insert(0, HttpFilterConfig::new("password", HttpFilterKind::Custom(password)));
    let mut listener = Listener::new("front", listen);
    listener.filter_chains = vec![FilterChain::new("http", vec![NetworkFilter::Http(Arc::new(manager))])];
    let proxy = Proxy::builder().http_filter(Arc::new(PasswordFactory)).build()?;
    let endpoints = Arc::new(LoadAssignment::new("app", [upstream]));
    proxy.handle().apply_cluster(Cluster::new("app", Discovery::Static(endpoints)))?;
    proxy.handle().apply_listener(listener)?;
    Ok(proxy)
}

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let _proxy = start(arguments[1].parse()?, arguments[2].parse()?)?;
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?; // Until standard input is closed.
    Ok(())
}
