// Package headrace writes training metrics to a Headrace gateway, exactly once,
// reads them back as columns, and moves artifacts.
//
//	client, err := headrace.Connect("127.0.0.1:7420")
//	run, err := client.CreateRun(ctx, headrace.RunOptions{Experiment: "digits"})
//	writer, err := client.OpenWriter(headrace.WriterOptions{RunID: run.ID})
//	for step := range int64(100) {
//		writer.Log(step, map[string]float64{"loss": loss})
//	}
//	err = writer.Finish(ctx)
//
// Log does not wait for the gateway: a goroutine of the writer batches, sends,
// and, when the connection or the gateway is gone, tries again for as long as
// the writer lives. What Flush and Finish have confirmed is committed.
//
// A Client and a Writer may be used by any number of goroutines.
package headrace
