// Validates the KEDA objects that come as JSON on stdin against KEDA's own resource definition; says what is wrong.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const { ScaledObject } = createRequire(process.argv[2] + "/")("@kubernetes-models/keda/keda.sh/v1alpha1/ScaledObject");
for (const object of JSON.parse(readFileSync(0, "utf8"))) {
  try {
    new ScaledObject(object).validate();
  } catch (error) {
    console.log(`${object.metadata?.name}: ${error.message}`);
  }
}
