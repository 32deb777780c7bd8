//! Connects to a server that it knows by SPIFFE ID and prints what it says.
//!
//! `client ADDRESS SERVER_ID CHAIN.pem KEY.pem ROOTS.pem`

use std::{env::args, fs::read};

use anyhow::Context;
use mesh_identity::{Authorizer, Identity, WallClock, client_config};
use rustls::pki_types::ServerName;
use tokio::{io::AsyncReadExt, net::TcpStream};
use tokio_rustls::TlsConnector;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let [address, server, chain, key, roots] =
        args().skip(1).collect::<Vec<_>>().try_into().ok().context("5 arguments")?;
    let identity = Identity::from_pem(&read(chain)?, &read(key)?, &read(roots)?, WallClock::system())?;
    let config = client_config(&identity, Authorizer::exact(server.parse()?))?;
    let tcp = TcpStream::connect(&address).await?;
    let mut stream = TlsConnector::from(config).connect(ServerName::try_from("server")?, tcp).await?;
    let mut said = String::new();
    stream.read_to_string(&mut said).await?;
    print!("{said}");
    Ok(())
}
