// Calls pagoda.v1.Inference.Generate with nothing but the .proto files, and prints what arrived as one JSON line.
// usage: node generate.mjs HOST:PORT PROTOS_FOLDER REQUEST_JSON
import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";

const [address, protos, request] = process.argv.slice(2);
const definition = protoLoader.loadSync("pagoda/v1/inference.proto", {
  includeDirs: [protos],
  keepCase: true,
  enums: String,
  defaults: true,
});
const { pagoda } = grpc.loadPackageDefinition(definition);
const client = new pagoda.v1.Inference(address, grpc.credentials.createInsecure());

const answer = { text: "", token_ids: [], finish_reason: null, usage: null, error: null };
const call = client.Generate(JSON.parse(request));
call.on("data", (message) => {
  answer.text += message.text;
  answer.token_ids.push(...message.token_ids);
  if (message.usage) {
    answer.finish_reason = message.finish_reason;
    answer.usage = message.usage;
  }
});
// "status" comes exactly once, last; without a listener for "error", Node would throw.
call.on("error", () => {});
call.on("status", (status) => {
  if (status.code !== grpc.status.OK) answer.error = { code: status.code, details: status.details };
  console.log(JSON.stringify(answer));
});
