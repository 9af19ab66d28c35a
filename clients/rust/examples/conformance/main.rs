//! Replays a scenario of clients/scenarios through this client; that folder's README
//! has the protocol.

mod encode;
mod replay;

use std::collections::HashMap;
use std::error::Error;
use std::path::PathBuf;

use headrace::{Client, ConnectOptions};
use serde_json::Value;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let arguments: HashMap<&str, &str> = words
        .chunks_exact(2)
        .map(|pair| (pair[0].trim_start_matches("--"), pair[1].as_str()))
        .collect();
    if let Some(file) = arguments.get("encode") {
        return encode::print_encoded(&std::fs::read_to_string(file)?);
    }
    let document: Value = serde_json::from_str(&std::fs::read_to_string(arguments["scenario"])?)?;
    let options = ConnectOptions {
        token: arguments.get("token").map(|token| (*token).to_owned()),
        tls_ca: arguments.get("tls-ca").map(std::fs::read_to_string).transpose()?,
    };
    let client = Client::connect_with(arguments["address"], options)?;
    let directory = PathBuf::from(arguments.get("directory").copied().unwrap_or("."));
    replay::Replay::new(client, directory).run(&document["steps"]).await
}
