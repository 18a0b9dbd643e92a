//! The API server as a program: `apiserver ADDRESS FOLDER`, over TLS, with a token that the kubeconfig in FOLDER has. It ends when its standard
//! input does.
#![allow(clippy::print_stdout, reason = "it says where it listens")]

use std::io::{self, Read as _};
use std::path::Path;

use apiserver::{ApiServer, Auth, Config};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(address), Some(folder)) = (arguments.next(), arguments.next()) else {
        return Err("usage: apiserver ADDRESS:PORT FOLDER".into());
    };
    let token = std::fs::read_to_string("/proc/sys/kernel/random/uuid")?;
    let config = Config {
        address: address.parse()?,
        tls: true,
        auth: Auth::Token(token.trim().to_owned()),
        ..Config::default()
    };
    let server = ApiServer::start(config)?;
    let folder = Path::new(&folder);
    server.kubeconfig(folder)?;
    std::fs::write(folder.join("token"), token.trim())?;
    println!("{}", server.url());
    io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}
