// Stands for all four receivers of notifications, and checks what comes as theirs would: CloudEvents with the SDK of the
// project, signatures with the reference verifier of Standard Webhooks. Each request that is taken is a JSON line on stdout;
// what is wrong with another one is said there, too.
import { createServer } from "node:http";
import { HTTP } from "cloudevents";
import { Webhook } from "standardwebhooks";

const [secret, routingKey, token] = process.argv.slice(2);
const CHANNELS = { "/hook": webhook, "/services/T0/B0/x": slack, "/v2/enqueue": pagerduty, "/api/annotations": grafana };
const verifier = new Webhook(secret, { format: "raw" });

function demand(is, what) {
  if (!is) throw new Error(what);
}
function webhook(headers, body) {
  verifier.verify(body, headers);
  let forged = false;
  try {
    verifier.verify(body + " ", headers);
    forged = true;
  } catch {
    // As it should be.
  }
  demand(!forged, "the verifier takes anything");
  demand(headers["content-type"].startsWith("application/cloudevents+json"), "not in structured mode");
  const event = HTTP.toEvent({ headers, body });
  demand(event.validate() === true, "not a CloudEvent");
  demand(event.type.startsWith("pgleash.") && event.id === headers["webhook-id"], "its type, or its id, is wrong");
  return ["webhook", 204, ""];
}
function slack() {
  return ["slack", 200, "ok"];
}
function pagerduty(_, body) {
  demand(JSON.parse(body).routing_key === routingKey, "the routing key is wrong");
  return ["pagerduty", 202, JSON.stringify({ status: "success", message: "Event processed", dedup_key: "k" })];
}
function grafana(headers) {
  demand(headers.authorization === `Bearer ${token}`, "the token is wrong");
  return ["grafana", 200, JSON.stringify({ message: "Annotation added", id: 1 })];
}

const server = createServer(async (request, response) => {
  const chunks = [];
  for await (const chunk of request) chunks.push(chunk);
  const body = Buffer.concat(chunks).toString();
  try {
    demand(request.method === "POST" && CHANNELS[request.url], `nobody listens at ${request.method} ${request.url}`);
    demand(/^application\/[\w+]*json/.test(request.headers["content-type"]), "not JSON by its content type");
    const [channel, status, answer] = CHANNELS[request.url](request.headers, body);
    console.log(JSON.stringify({ channel, body: JSON.parse(body) }));
    response.writeHead(status).end(answer);
  } catch (error) {
    console.log(JSON.stringify({ wrong: `${request.url}: ${error.message}: ${body}` }));
    response.writeHead(400).end(error.message);
  }
});
server.listen(0, "127.0.0.1", () => console.log(JSON.stringify({ port: server.address().port })));
