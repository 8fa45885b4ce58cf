-- The state of a vendor's streams. ARGV: now, streams.
-- Gives: what each priority has paid for its turns (-1: it is idle), then how many jobs of each stream are leased. Nothing while the index is lost.
local streams = tonumber(ARGV[2])
if not epoch() then return {} end
local answer = redis.call('HMGET', state, 'spent0', 'spent1', 'spent2')
for p = 1, 3 do answer[p] = tonumber(answer[p] or -1) end
for stream = 0, 5 do
  local _, _, leased = 0, 0, 0
  if stream < streams then _, _, leased = waiting(stream) end
  answer[#answer + 1] = leased
end
return answer
