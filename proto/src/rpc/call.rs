//! What the generated stubs share: a typed call over a [`Channel`].

use super::{CallContext, Channel, Inbound, Outbound, Status, decode, encode};
use prost::Message;

/// One request, one answer.
///
/// # Errors
/// The call's status, or INTERNAL if the answer cannot be decoded.
pub async fn unary<Request: Message, Answer: Message + Default>(
    channel: &impl Channel,
    path: &'static str,
    cx: CallContext,
    request: &Request,
) -> Result<Answer, Status> {
    decode(channel.unary(path, cx, encode(request)).await?)
}

/// One request, many answers.
///
/// # Errors
/// The call's status if it ended before the request was sent; else the status comes with the answers.
pub async fn server_stream<Request: Message, Answer: Message + Default>(
    channel: &impl Channel,
    path: &'static str,
    cx: CallContext,
    request: &Request,
) -> Result<Inbound<Answer>, Status> {
    let (outbound, inbound) = stream::<Request, Answer>(channel, path, cx).await?;
    outbound.send(request).await?;
    outbound.close();
    Ok(inbound)
}

/// Many requests, one or many answers. For one answer, close the requests and then take [`Inbound::one`].
///
/// # Errors
/// The status if the call could not be started; else it comes with the answers.
pub async fn stream<Request: Message, Answer: Message + Default>(
    channel: &impl Channel,
    path: &'static str,
    cx: CallContext,
) -> Result<(Outbound<Request>, Inbound<Answer>), Status> {
    let (inbound, outbound) = channel.stream(path, cx).await?;
    Ok((Outbound::new(outbound), Inbound::new(inbound)))
}
