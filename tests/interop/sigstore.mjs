// The other side of tests/signatures.rs: the ecosystem's own library reads what we sign, and makes what we read.
// One JSON request a line on standard input, one JSON answer a line on standard output.
import { createHash, createPrivateKey, createPublicKey, sign } from "node:crypto";
import { createInterface } from "node:readline";
import { bundleFromJSON, bundleToJSON, toDSSEBundle, toMessageSignatureBundle } from "@sigstore/bundle";
import { dsse } from "@sigstore/core";
import { toSignedEntity, toTrustMaterial, Verifier } from "@sigstore/verify";

const nothing = { certificateAuthorities: [], timestampAuthorities: [], tlogs: [], ctlogs: [] };

const hintOf = (key) => createHash("sha256").update(key.export({ format: "der", type: "spki" })).digest("base64");

// Is the signature good, by this key and found by its hint? And how does the library itself write this bundle?
function verify({ bundle, key, artifact }) {
  const publicKey = createPublicKey(key);
  const trusted = toTrustMaterial(nothing, (hint) => {
    if (hint !== hintOf(publicKey)) throw new Error(`unknown hint ${hint}`);
    return { publicKey, validFor: () => true };
  });
  const parsed = bundleFromJSON(JSON.parse(bundle));
  const entity = toSignedEntity(parsed, Buffer.from(artifact, "base64"));
  new Verifier(trusted, { tlogThreshold: 0, ctlogThreshold: 0, timestampThreshold: 0 }).verify(entity);
  return { rewritten: JSON.stringify(bundleToJSON(parsed)) };
}

// Signs a payload of a type, or an artifact's bytes, as the library puts it together.
function make({ key, payload, payloadType, artifact, keyHint }) {
  const privateKey = createPrivateKey(key);
  const hint = keyHint ?? hintOf(createPublicKey(privateKey));
  const digest = privateKey.asymmetricKeyType === "ed25519" ? null : "sha256";
  if (artifact !== undefined) {
    const bytes = Buffer.from(artifact, "base64");
    const bundle = toMessageSignatureBundle({
      digest: createHash("sha256").update(bytes).digest(),
      signature: sign(digest, bytes, privateKey),
      keyHint: hint,
    });
    return { bundle: JSON.stringify(bundleToJSON(bundle)) };
  }
  const bytes = Buffer.from(payload, "base64");
  const bundle = toDSSEBundle({
    artifact: bytes,
    artifactType: payloadType,
    signature: sign(digest, dsse.preAuthEncoding(payloadType, bytes), privateKey),
    keyHint: hint,
  });
  return { bundle: JSON.stringify(bundleToJSON(bundle)) };
}

for await (const line of createInterface({ input: process.stdin })) {
  const request = JSON.parse(line);
  try {
    console.log(JSON.stringify({ ok: true, ...(request.op === "make" ? make(request) : verify(request)) }));
  } catch (error) {
    console.log(JSON.stringify({ ok: false, error: String(error.message ?? error) }));
  }
}
