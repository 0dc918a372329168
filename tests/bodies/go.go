// What Go reads of JSON bodies, for tests/bodies.rs: a decoder's first value, as a map and as a struct. Lines on
// standard input are BASE64(field) BASE64(body); answers are "=BASE64(value)" or "Absent", twice a line.
package main

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"reflect"
	"strings"
)

func show(value any) string {
	if text, ok := value.(string); ok {
		return "=" + base64.StdEncoding.EncodeToString([]byte(text))
	}
	return "Absent"
}

func main() {
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		parts := strings.Split(lines.Text(), " ")
		name, _ := base64.StdEncoding.DecodeString(parts[0])
		body, _ := base64.StdEncoding.DecodeString(parts[1])
		var object map[string]any
		if json.NewDecoder(bytes.NewReader(body)).Decode(&object) != nil {
			object = nil
		}
		kind := reflect.StructOf([]reflect.StructField{{
			Name: "Field", Type: reflect.TypeOf((*any)(nil)).Elem(),
			Tag: reflect.StructTag(`json:"` + string(name) + `"`),
		}})
		fields := reflect.New(kind)
		if json.NewDecoder(bytes.NewReader(body)).Decode(fields.Interface()) != nil {
			fields = reflect.New(kind)
		}
		fmt.Println(show(object[string(name)]), show(fields.Elem().Field(0).Interface()))
	}
}
