-- Asks Portcullis whether a request may go on. Needs HAProxy 2.5 or newer (core.httpclient).
local SOCKET = "unix@/run/portcullis/gateway/haproxy-lua.sock"
-- Headers of the connection to us, and those that this script sets.
local OURS = {
    ["connection"] = true, ["content-length"] = true, ["expect"] = true, ["host"] = true, ["keep-alive"] = true,
    ["proxy-connection"] = true, ["te"] = true, ["trailer"] = true, ["transfer-encoding"] = true, ["upgrade"] = true,
    ["x-original-method"] = true, ["x-original-uri"] = true, ["x-original-host"] = true, ["x-original-proto"] = true,
    ["x-real-ip"] = true,
}
-- Headers of an answer that are about the answer.
local ABOUT = {
    ["connection"] = true, ["content-length"] = true, ["date"] = true, ["keep-alive"] = true, ["server"] = true,
    ["transfer-encoding"] = true,
}

-- Lists of values instead of HAProxy's tables, which count from 0.
local function listed(headers, without)
    local lists = {}
    for name, values in pairs(headers) do
        if not without[name] then
            local list = {}
            for number = 0, #values do
                if values[number] then list[#list + 1] = values[number] end
            end
            lists[name] = list
        end
    end
    return lists
end

core.register_action("portcullis", { "http-req" }, function(txn)
    local headers = listed(txn.http:req_get_headers(), OURS)
    headers["x-original-method"] = { txn.f:method() }
    headers["x-original-uri"] = { txn.f:pathq() }
    headers["x-original-host"] = { txn.f:req_fhdr("host") or "" }
    headers["x-original-proto"] = { txn.f:ssl_fc() == 1 and "https" or "http" }
    headers["x-real-ip"] = { txn.f:src() }
    local answer = core.httpclient():get { url = "http://portcullis/", dst = SOCKET, headers = headers, timeout = 1000 }
    if answer.status == 200 then
        -- What the service behind us is to see. An empty value means that it is not to see that header.
        for name, values in pairs(listed(answer.headers, ABOUT)) do
            txn.http:req_del_header(name)
            for _, value in ipairs(values) do
                if value ~= "" then txn.http:req_add_header(name, value) end
            end
        end
        txn:set_var("txn.portcullis_allow", true)
    elseif answer.status >= 300 then
        local reply = txn:reply { status = answer.status, body = answer.body }
        for name, values in pairs(listed(answer.headers, ABOUT)) do
            for _, value in ipairs(values) do reply:add_header(name, value) end
        end
        txn:done(reply)
    end
end)
