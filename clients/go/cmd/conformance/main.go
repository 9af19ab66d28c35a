// Command conformance replays a scenario of clients/scenarios through this
// client; that folder's README has the protocol.
package main

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"os"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"headrace.dev/headrace"
	pb "headrace.dev/headrace/v1"
)

func main() {
	log.SetFlags(0)
	address := flag.String("address", headrace.DefaultAddress, "the gateway")
	scenario := flag.String("scenario", "", "the file to replay")
	encode := flag.String("encode", "", "the file of messages to encode")
	token := flag.String("token", "", "a bearer token")
	authority := flag.String("tls-ca", "", "the PEM file of the authority to trust")
	directory := flag.String("directory", ".", "where the scenario's files are")
	flag.Parse()
	if *encode != "" {
		if err := encodeFile(*encode); err != nil {
			log.Fatal(err)
		}
		return
	}
	text, err := os.ReadFile(*scenario)
	if err != nil {
		log.Fatal(err)
	}
	var document struct {
		Steps []step `json:"steps"`
	}
	if err := json.Unmarshal(text, &document); err != nil {
		log.Fatal(err)
	}
	options := []headrace.Option{headrace.WithToken(*token)}
	if *authority != "" {
		pem, err := os.ReadFile(*authority)
		if err != nil {
			log.Fatal(err)
		}
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM(pem)
		options = append(options, headrace.WithTLS(&tls.Config{RootCAs: roots}))
	}
	client, err := headrace.Connect(*address, options...)
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	replay := &replay{
		client:    client,
		directory: *directory,
		input:     bufio.NewReader(os.Stdin),
		output:    json.NewEncoder(os.Stdout),
		writers:   make(map[string]*reported),
	}
	if err := replay.run(document.Steps); err != nil {
		log.Fatal(err)
	}
}

func encodeFile(name string) error {
	text, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	var vectors []struct {
		Message json.RawMessage `json:"message"`
	}
	if err := json.Unmarshal(text, &vectors); err != nil {
		return err
	}
	for _, vector := range vectors {
		request := new(pb.WriteMetricsRequest)
		if err := protojson.Unmarshal(vector.Message, request); err != nil {
			return err
		}
		encoded, err := proto.Marshal(request)
		if err != nil {
			return err
		}
		fmt.Println(hex.EncodeToString(encoded))
	}
	return nil
}
