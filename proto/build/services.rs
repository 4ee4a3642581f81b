//! Generates, for each service: the server's trait, the adapter to `rpc::Service`, and the client's stub.

use crate::commands::constant;
use prost_build::{Method, Service, ServiceGenerator};
use std::fmt::Write;

/// Writes a service's Rust into the module of its package.
pub(crate) struct Generator;

impl ServiceGenerator for Generator {
    fn generate(&mut self, service: Service, out: &mut String) {
        let full_name = format!("{}.{}", service.package, service.proto_name);
        method_table(&service, &full_name, out);
        server_trait(&service, &full_name, out);
        adapter(&service, out);
        client(&service, &full_name, out);
    }
}

/// How a method's requests and answers stream, and what each shape's code looks like.
struct Shape {
    variant: &'static str,
    /// Parameters of the server's method after the call context.
    parameters: String,
    /// What the server's method answers.
    output: String,
}

impl Shape {
    fn of(method: &Method) -> Shape {
        let (request, response) = (&method.input_type, &method.output_type);
        let answers = format!("answers: crate::rpc::Outbound<{response}>");
        match (method.client_streaming, method.server_streaming) {
            (false, false) => {
                Shape { variant: "Unary", parameters: format!("request: {request}"), output: response.clone() }
            }
            (false, true) => Shape {
                variant: "ServerStream",
                parameters: format!("request: {request}, {answers}"),
                output: "()".into(),
            },
            (true, false) => Shape {
                variant: "ClientStream",
                parameters: format!("request: crate::rpc::Inbound<{request}>"),
                output: response.clone(),
            },
            (true, true) => Shape {
                variant: "Bidi",
                parameters: format!("request: crate::rpc::Inbound<{request}>, {answers}"),
                output: "()".into(),
            },
        }
    }
}

/// `PD_NAME` and `PD_METHODS`: what the service is called and which methods it has, for those who dispatch by hand.
fn method_table(service: &Service, full_name: &str, out: &mut String) {
    let prefix = constant(&service.name);
    let mut rows = String::new();
    for method in &service.methods {
        let variant = Shape::of(method).variant;
        put(&mut rows, format_args!("(\"{}\", crate::rpc::Shape::{variant}),", method.proto_name));
    }
    put(
        out,
        format_args!(
            "/// The full name of the service.\n\
         pub const {prefix}_NAME: &str = \"{full_name}\";\n\
         /// Every method of the service with its shape.\n\
         pub const {prefix}_METHODS: &[(&str, crate::rpc::Shape)] = &[{rows}];\n"
        ),
    );
}

fn server_trait(service: &Service, full_name: &str, out: &mut String) {
    put(
        out,
        format_args!(
            "/// Handlers of `{full_name}`. Each answers UNIMPLEMENTED unless it is written.\n\
         pub trait {}: 'static {{\n",
            service.name
        ),
    );
    for method in &service.methods {
        let Shape { parameters, output, .. } = Shape::of(method);
        let unused = if method.server_streaming { "(cx, request, answers)" } else { "(cx, request)" };
        put(
            out,
            format_args!(
                "/// Handles `{full_name}/{proto}`.\n\
             fn {name}(&self, cx: crate::rpc::CallContext, {parameters})\n\
                 -> impl ::core::future::Future<Output = ::core::result::Result<{output}, crate::rpc::Status>> {{\n\
                 let _ = {unused};\n\
                 ::core::future::ready(Err(crate::rpc::Status::no_method(\"{full_name}\", \"{proto}\")))\n\
             }}\n",
                name = method.name,
                proto = method.proto_name,
            ),
        );
    }
    out.push_str("}\n");
}

fn adapter(service: &Service, out: &mut String) {
    let (mut unary, mut stream) = (String::new(), String::new());
    for method in &service.methods {
        let (name, proto) = (&method.name, &method.proto_name);
        match (method.client_streaming, method.server_streaming) {
            (false, false) => put(
                &mut unary,
                format_args!(
                    "\"{proto}\" => ::std::boxed::Box::pin(async move {{\n\
                     let request = crate::rpc::decode(request)?;\n\
                     Ok(crate::rpc::encode(&handler.{name}(cx, request).await?))\n\
                 }}),\n"
                ),
            ),
            (false, true) => put(
                &mut stream,
                format_args!(
                    "\"{proto}\" => ::std::boxed::Box::pin(async move {{\n\
                     let request = crate::rpc::Inbound::new(inbound).one().await?;\n\
                     handler.{name}(cx, request, crate::rpc::Outbound::new(outbound)).await\n\
                 }}),\n"
                ),
            ),
            (true, false) => put(
                &mut stream,
                format_args!(
                    "\"{proto}\" => ::std::boxed::Box::pin(async move {{\n\
                     let answer = handler.{name}(cx, crate::rpc::Inbound::new(inbound)).await?;\n\
                     crate::rpc::Outbound::new(outbound).send(&answer).await\n\
                 }}),\n"
                ),
            ),
            (true, true) => put(
                &mut stream,
                format_args!(
                    "\"{proto}\" => ::std::boxed::Box::pin(async move {{\n\
                     let (inbound, outbound) = (crate::rpc::Inbound::new(inbound), crate::rpc::Outbound::new(outbound));\n\
                     handler.{name}(cx, inbound, outbound).await\n\
                 }}),\n"
                ),
            ),
        }
    }
    let (name, prefix) = (&service.name, constant(&service.name));
    put(
        out,
        format_args!(
            "/// Adapts a [`{name}`] to [`rpc::Service`](crate::rpc::Service).\n\
         pub struct {name}Service<S> {{ handler: ::std::rc::Rc<S> }}\n\
         impl<S: {name}> {name}Service<S> {{\n\
             /// Serves with `handler`, which the caller may go on sharing.\n\
             pub fn new(handler: ::std::rc::Rc<S>) -> Self {{ Self {{ handler }} }}\n\
         }}\n\
         impl<S: {name}> crate::rpc::Service for {name}Service<S> {{\n\
             fn name(&self) -> &'static str {{ {prefix}_NAME }}\n\
             fn shape(&self, method: &str) -> ::core::option::Option<crate::rpc::Shape> {{\n\
                 {prefix}_METHODS.iter().find(|(name, _)| *name == method).map(|(_, shape)| *shape)\n\
             }}\n\
             fn unary(&self, method: &str, cx: crate::rpc::CallContext, request: ::bytes::Bytes)\n\
                 -> crate::rpc::LocalFuture<::core::result::Result<::bytes::Bytes, crate::rpc::Status>> {{\n\
                 let handler = ::std::rc::Rc::clone(&self.handler);\n\
                 let _ = (&handler, &cx, &request);\n\
                 match method {{\n{unary}\
                     _ => crate::rpc::refuse(crate::rpc::Status::no_method({prefix}_NAME, method)),\n\
                 }}\n\
             }}\n\
             fn stream(&self, method: &str, cx: crate::rpc::CallContext,\n\
                 inbound: ::std::boxed::Box<dyn crate::rpc::RawInbound>, outbound: ::std::rc::Rc<dyn crate::rpc::RawOutbound>)\n\
                 -> crate::rpc::LocalFuture<::core::result::Result<(), crate::rpc::Status>> {{\n\
                 let handler = ::std::rc::Rc::clone(&self.handler);\n\
                 let _ = (&handler, &cx, &inbound, &outbound);\n\
                 match method {{\n{stream}\
                     _ => crate::rpc::refuse(crate::rpc::Status::no_method({prefix}_NAME, method)),\n\
                 }}\n\
             }}\n\
         }}\n"
        ),
    );
}

fn client(service: &Service, full_name: &str, out: &mut String) {
    let name = &service.name;
    put(
        out,
        format_args!(
            "/// Calls `{full_name}` over a [`Channel`](crate::rpc::Channel).\n\
         #[derive(Clone, Debug)]\n\
         pub struct {name}Client<C> {{ channel: C }}\n\
         impl<C: crate::rpc::Channel> {name}Client<C> {{\n\
             /// Calls over `channel`.\n\
             pub fn new(channel: C) -> Self {{ Self {{ channel }} }}\n\
             /// What the calls go over.\n\
             pub fn channel(&self) -> &C {{ &self.channel }}\n"
        ),
    );
    for method in &service.methods {
        let (request, response) = (&method.input_type, &method.output_type);
        let (call, parameter, output) = match (method.client_streaming, method.server_streaming) {
            (false, false) => ("unary", format!(", request: &{request}"), response.clone()),
            (false, true) => {
                ("server_stream", format!(", request: &{request}"), format!("crate::rpc::Inbound<{response}>"))
            }
            (true, _) => {
                ("stream", String::new(), format!("(crate::rpc::Outbound<{request}>, crate::rpc::Inbound<{response}>)"))
            }
        };
        let argument = if parameter.is_empty() { "" } else { ", request" };
        put(
            out,
            format_args!(
                "/// Calls `{full_name}/{proto}`.\n\
             pub async fn {rust}(&self, cx: crate::rpc::CallContext{parameter})\n\
                 -> ::core::result::Result<{output}, crate::rpc::Status> {{\n\
                 crate::rpc::call::{call}(&self.channel, \"/{full_name}/{proto}\", cx{argument}).await\n\
             }}\n",
                rust = method.name,
                proto = method.proto_name,
            ),
        );
    }
    out.push_str("}\n");
}

fn put(out: &mut String, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).expect("writing to a String cannot fail");
}
