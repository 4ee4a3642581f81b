//! The program of the README, which `tests/readme.rs` compares with it.
#![allow(clippy::result_large_err, reason = "the error is the client's")]

use tikv_client::RawClient;

#[tokio::main]
async fn main() -> Result<(), tikv_client::Error> {
    let client = RawClient::new(vec!["127.0.0.1:2379"]).await?;
    client.put("greeting".to_owned(), "hello from a core of its own".to_owned()).await?;
    let value = client.get("greeting".to_owned()).await?;
    println!("{}", String::from_utf8_lossy(&value.unwrap_or_default()));
    Ok(())
}
