/**
 * The generated code of the contract, for what this library does not cover.
 *
 * @module
 */
export * from "./gen/headrace/v1/artifact_service_pb.js";
export * from "./gen/headrace/v1/error_reason_pb.js";
export * from "./gen/headrace/v1/experiment_service_pb.js";
export * from "./gen/headrace/v1/metric_service_pb.js";
export * from "./gen/headrace/v1/run_service_pb.js";
