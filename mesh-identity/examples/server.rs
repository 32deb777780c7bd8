//! Says hello to every peer of its trust domain, by name.
//!
//! `server LISTEN CHAIN.pem KEY.pem ROOTS.pem`; the files are read again at half of the certificate's lifetime.

use std::env::args;

use anyhow::Context;
use mesh_identity::source::FileFetcher;
use mesh_identity::{Authorizer, RenewalPolicy, SvidSource, WallClock, server_config, tls::peer_identity};
use tokio::{io::AsyncWriteExt, net::TcpListener};
use tokio_rustls::TlsAcceptor;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let [listen, chain, key, roots] =
        args().skip(1).collect::<Vec<_>>().try_into().ok().context("4 arguments")?;
    let files = FileFetcher { chain: chain.into(), key: key.into(), roots: roots.into() };
    let source = SvidSource::spawn(files, RenewalPolicy::default(), WallClock::system());
    source.ready().await;
    let own = source.identity().current().id().context("an SVID")?.trust_domain();
    let acceptor = TlsAcceptor::from(server_config(source.identity(), Authorizer::trust_domain(own))?);
    let listener = TcpListener::bind(&listen).await?;
    println!("listening on {}", listener.local_addr()?);
    loop {
        let (tcp, _) = listener.accept().await?;
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            let mut stream = acceptor.accept(tcp).await?;
            let peer = peer_identity(stream.get_ref().1).context("a peer")?;
            stream.write_all(format!("hello {}\n", peer.id).as_bytes()).await?;
            anyhow::Ok(stream.shutdown().await?)
        });
    }
}
